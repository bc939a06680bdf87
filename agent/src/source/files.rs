//! Documents from a file or a directory: what changed since the last scan, as events.
//! A directory's `*.yaml`, `*.yml` and `*.json` count; hidden names, other names and sub-directories do not.
//! Symbolic links are followed, so that a directory whose content is swapped by one link is read as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    host::ownership,
    model::{
        document::DocumentKey,
        parse::{self, DocumentFormat, Parsed},
    },
};

/// Largest file, in bytes.
pub const MAX_FILE: u64 = 4 << 20;
/// A file must be away for so long before what it brought is taken back: editors and deployment tools remove a file
/// a moment before they write it anew.
pub const GRACE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileEvent {
    /// The file is new, or its content is another. All of its documents, at least one.
    Changed { file: PathBuf, documents: Vec<Parsed> },
    /// The file cannot be used as it is; what it brought before stays. Said once for the same content.
    Failed { file: PathBuf, error: String },
    /// The file is gone for good, and its documents with it.
    Removed { file: PathBuf },
}

impl FileEvent {
    /// The file, or the directory that cannot be listed.
    pub fn file(&self) -> &Path {
        match self {
            Self::Changed { file, .. } | Self::Failed { file, .. } | Self::Removed { file } => file,
        }
    }
}

/// Files as they were last seen.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    is_directory: bool,
    known: BTreeMap<PathBuf, Known>,
    /// Why the directory could not be listed.
    trouble: Option<String>,
    /// Whether the last scan has to be made again.
    again: bool,
}

#[derive(Debug, Default)]
struct Known {
    /// Differs once the file has to be read again; `None`: it is read by the next scan.
    stamp: Option<FileStamp>,
    /// Documents of the last good content.
    keys: Vec<DocumentKey>,
    error: Option<String>,
    /// When it was first found missing.
    away: Option<Instant>,
}

/// Differs when a file was written or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    file: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Files {
    /// For a file or a directory at `path`. `brought`: files whose documents were applied in earlier runs; one that was
    /// at `path` and is gone is reported as removed.
    ///
    /// # Errors
    /// When there is nothing at `path`.
    pub fn new(path: &Path, brought: impl IntoIterator<Item = PathBuf>) -> Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("resolving the path {}", path.display()))?;
        let metadata = fs::metadata(&path).with_context(|| {
            format!(
                "looking for documents in {}: make the file or directory, or leave it out of --apply",
                path.display()
            )
        })?;
        let is_directory = metadata.is_dir();
        let here = |file: &PathBuf| *file == path || is_directory && file.parent() == Some(&path);
        let known = brought.into_iter().filter(here).map(|file| (file, Known::default())).collect();
        Ok(Self { path, is_directory, known, trouble: None, again: false })
    }

    /// The directory to watch; for a file, the one that it is in, so that its replacement is seen too.
    pub fn directory(&self) -> &Path {
        if self.is_directory { &self.path } else { self.path.parent().unwrap_or(&self.path) }
    }

    /// Whether the next scan is due soon: a file is missing and its [`GRACE`] runs, or the last scan was not applied.
    pub fn is_waiting(&self) -> bool {
        self.again || self.known.values().any(|known| known.away.is_some())
    }

    /// Has the next scan report these files again: the last one was not applied.
    pub fn look_again(&mut self, files: Vec<PathBuf>) {
        self.again = true;
        for file in files {
            if file == self.path && self.is_directory {
                self.trouble = None;
            } else {
                let known = self.known.entry(file).or_default();
                (known.stamp, known.error) = (None, None);
            }
        }
    }

    /// What differs from the last scan. Removals come last, so that a document that moved is taken over by its new file
    /// first.
    pub fn scan(&mut self, now: Instant) -> Vec<FileEvent> {
        self.again = false;
        let listed = match self.list() {
            Ok(listed) => listed,
            Err(error) => {
                // Without a list no file is known to be missing.
                let error = format!("{error:#}");
                let said = self.trouble.replace(error.clone()).is_some_and(|before| before == error);
                return if said { Vec::new() } else { vec![FileEvent::Failed { file: self.path.clone(), error }] };
            }
        };
        self.trouble = None;
        let mut contents = BTreeMap::new();
        for (file, stamp) in &listed {
            let known = self.known.entry(file.clone()).or_default();
            let stamp = Some(*stamp);
            let is_back = known.away.take().is_some();
            if known.stamp != stamp || is_back {
                known.stamp = stamp;
                contents.insert(file.clone(), read(file));
            }
        }
        let mut events = self.judge(contents, &listed);
        for (file, known) in &mut self.known {
            if !listed.contains_key(file) {
                let since = *known.away.get_or_insert(now);
                if now.saturating_duration_since(since) >= GRACE {
                    events.push(FileEvent::Removed { file: file.clone() });
                }
            }
        }
        for event in &events {
            if let FileEvent::Removed { file } = event {
                self.known.remove(file);
            }
        }
        events
    }

    /// Events for files with new content. A document belongs to the file that had it first.
    fn judge(
        &mut self,
        contents: BTreeMap<PathBuf, Result<Vec<Parsed>, String>>,
        listed: &BTreeMap<PathBuf, FileStamp>,
    ) -> Vec<FileEvent> {
        let mut claims: BTreeMap<DocumentKey, PathBuf> = BTreeMap::new();
        for (file, known) in self.known.iter().filter(|(file, _)| listed.contains_key(*file)) {
            // A file that cannot be read keeps its documents; the documents of one that can are claimed anew.
            if contents.get(file).is_none_or(Result::is_err) {
                claims.extend(known.keys.iter().map(|key| (key.clone(), file.clone())));
            }
        }
        let mut order: Vec<_> = contents.into_iter().collect();
        order.sort_by_key(|(file, _)| self.known.get(file).is_none_or(|known| known.keys.is_empty()));
        let mut events = Vec::new();
        for (file, content) in order {
            let known = self.known.entry(file.clone()).or_default();
            let content = content.and_then(|documents| {
                claimed(&file, documents, &claims).inspect_err(|_| {
                    // Read again by the next scan: the other file may have let go of the document.
                    known.stamp = None;
                })
            });
            match content {
                Ok(documents) => {
                    known.keys = documents.iter().map(|parsed| parsed.document.key()).collect();
                    known.error = None;
                    events.push(FileEvent::Changed { file: file.clone(), documents });
                }
                Err(error) if known.error.as_ref() == Some(&error) => {}
                Err(error) => {
                    known.error = Some(error.clone());
                    events.push(FileEvent::Failed { file: file.clone(), error });
                }
            }
            claims.extend(known.keys.iter().map(|key| (key.clone(), file.clone())));
        }
        events
    }

    fn list(&self) -> Result<BTreeMap<PathBuf, FileStamp>> {
        let mut files = BTreeSet::new();
        if self.is_directory {
            let listing = || format!("listing {}", self.path.display());
            for entry in fs::read_dir(&self.path).with_context(listing)? {
                let path = entry.with_context(listing)?.path();
                if counts(&path) {
                    files.insert(path);
                }
            }
        } else {
            files.insert(self.path.clone());
        }
        // A file that disappears between the listing and here is missing.
        let stamped = files.into_iter().filter_map(|file| Some((FileStamp::of(&fs::metadata(&file).ok()?)?, file)));
        Ok(stamped.map(|(stamp, file)| (file, stamp)).collect())
    }
}

impl FileStamp {
    /// `None`: it is no regular file.
    fn of(metadata: &fs::Metadata) -> Option<Self> {
        metadata.is_file().then(|| Self {
            file: (metadata.dev(), metadata.ino()),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

fn counts(path: &Path) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let extension = path.extension().and_then(|extension| extension.to_str());
    !hidden && matches!(extension, Some("yaml" | "yml" | "json"))
}

fn read(file: &Path) -> Result<Vec<Parsed>, String> {
    if file.to_str().is_none() {
        return Err("the file's name is not UTF-8: rename it".to_owned());
    }
    let mut bytes = Vec::new();
    let read = ownership::open_regular(file).and_then(|source| source.take(MAX_FILE + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("reading it: {error}"))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("the file is larger than {} MiB: split it", MAX_FILE >> 20));
    }
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let format = if is_json { DocumentFormat::Json } else { DocumentFormat::Yaml };
    parse::documents(&bytes, format).map_err(|refusal| refusal.to_string())
}

/// `documents`, unless another file has one of them or one is there twice.
fn claimed(
    file: &Path,
    documents: Vec<Parsed>,
    claims: &BTreeMap<DocumentKey, PathBuf>,
) -> Result<Vec<Parsed>, String> {
    let mut seen = BTreeSet::new();
    for (index, parsed) in documents.iter().enumerate() {
        let key = parsed.document.key();
        if let Some(other) = claims.get(&key).filter(|other| *other != file) {
            return Err(format!("{key} is also in {}: keep it in one of them", other.display()));
        }
        if !seen.insert(key.clone()) {
            return Err(format!("document {}: {key} is in this file already", index + 1));
        }
    }
    Ok(documents)
}
