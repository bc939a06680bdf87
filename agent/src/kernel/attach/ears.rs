//! Hears of changes among the pins and of a cgroup that comes or goes, as far as the kernel tells.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
    time::Duration,
};

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// After a word: what is removed is seldom one pin alone.
const PAUSE: Duration = Duration::from_millis(20);

pub struct Ears {
    /// Whatever is below them, or is one of them.
    subjects: Vec<PathBuf>,
    words: Receiver<()>,
    sender: SyncSender<()>,
    watcher: Option<RecommendedWatcher>,
    watched: Vec<(PathBuf, (u64, u64))>,
    said: bool,
}

/// Which directory this is, whatever its name.
pub fn identity(directory: &Path) -> Option<(u64, u64)> {
    fs::metadata(directory).ok().map(|found| (found.dev(), found.ino()))
}

impl Ears {
    pub fn new(subjects: Vec<PathBuf>) -> Self {
        let (sender, words) = mpsc::sync_channel(1);
        Self { subjects, words, sender, watcher: None, watched: Vec::new(), said: false }
    }

    /// Listens in these directories, of which some may be missing or others than before.
    pub fn follow(&mut self, directories: &[PathBuf]) {
        let found = directories.iter().filter_map(|path| Some((path.clone(), identity(path)?)));
        let found: Vec<_> = found.collect();
        if self.watched == found {
            return;
        }
        match self.listen(&found) {
            Ok(watcher) => (self.watcher, self.watched) = (Some(watcher), found),
            Err(error) if !self.said => {
                self.said = true;
                tracing::warn!(%error, "cannot watch the pins and the cgroup: they are looked at once a second instead");
            }
            Err(_) => {}
        }
    }

    fn listen(&self, directories: &[(PathBuf, (u64, u64))]) -> notify::Result<RecommendedWatcher> {
        let (sender, subjects) = (self.sender.clone(), self.subjects.clone());
        let is_ours = move |path: &PathBuf| subjects.iter().any(|subject| path.starts_with(subject));
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let is_word = event.is_ok_and(|event| match event.kind {
                EventKind::Create(_) | EventKind::Remove(_) | EventKind::Modify(notify::event::ModifyKind::Name(_)) => {
                    event.paths.iter().any(&is_ours)
                }
                EventKind::Any | EventKind::Other => true,
                EventKind::Access(_) | EventKind::Modify(_) => false,
            });
            if is_word {
                // One word that is not taken yet stands for all.
                let _ = sender.try_send(());
            }
        })?;
        for (directory, _) in directories {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }

    /// Waits for a word, but no longer than this.
    pub fn wait(&self, longest: Duration) {
        if self.words.recv_timeout(longest).is_ok() {
            thread::sleep(PAUSE);
            let _ = self.words.try_recv();
        }
    }
}
