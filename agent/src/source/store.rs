//! The embedded store: what the agent knows survives restarts and power loss. Every commit is one durable transaction,
//! so that what is found again is the state after some change, never half of one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions, Permissions},
    io::Read,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use crate::host::ownership;
use crate::model::{Limits, NodeId, ServiceId, State, Touched, document::DocumentKey, parse::ContentHash};

/// Name of the store's file in the state directory.
pub const FILE: &str = "sluice.redb";
/// Version of the records. A store of another version is refused.
const FORMAT: u32 = 1;
/// Enough for the pages of a change; the whole state is in memory anyway. Bytes.
const CACHE: usize = 4 << 20;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const SERVICES: TableDefinition<u32, &[u8]> = TableDefinition::new("services");
const NODES: TableDefinition<u32, &[u8]> = TableDefinition::new("nodes");
const FILES: TableDefinition<(&str, &str), [u8; 16]> = TableDefinition::new("files");
const EXTRAS: TableDefinition<&str, &[u8]> = TableDefinition::new("extras");

#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    /// `None` when it could not be opened again after a fault: the next change tries once more.
    database: Option<Database>,
    identity: [u8; 16],
    doubtful: Doubtful,
    /// Commits that fail as on a full disk.
    #[cfg(test)]
    pub(crate) failing: u32,
}

/// What the disk may hold of a change that failed to be written: the next one that does not fail writes it anew.
#[derive(Debug, Default)]
struct Doubtful {
    services: BTreeSet<ServiceId>,
    nodes: BTreeSet<NodeId>,
    /// Files and documents of marks. Without its mark, a document is applied once more at the next start.
    marks: BTreeSet<(PathBuf, DocumentKey)>,
}

/// What one transaction writes besides the revision.
#[derive(Clone, Copy, Debug, Default)]
pub struct Batch<'a> {
    pub touched: &'a [Touched],
    pub marks: &'a [AppliedMark],
    pub extras: &'a [ExtraRecord],
}

/// What other parts of the agent keep under a name of theirs; `None` removes it.
pub type ExtraRecord = (String, Option<Vec<u8>>);

/// That a document of a file was applied, or (`None`) that the file no longer brings it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedMark {
    pub file: PathBuf,
    pub document: DocumentKey,
    pub hash: Option<ContentHash>,
}

impl Store {
    /// Opens the store in `dir`, both made when missing, and reads the state from it.
    ///
    /// # Errors
    /// When another process has it open, or it cannot be used; the message says what to do.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Self, State)> {
        let made = ownership::make_directory(dir, 0o700);
        made.with_context(|| format!("the state directory {}: choose another --state-dir", dir.display()))?;
        ownership::close(dir, &[FILE])?;
        let path = dir.join(FILE);
        close_to_others(&path)?;
        guarded(&path, || Self::open_file(&path, limits))
    }

    /// Made at random when the store was: tells agents apart that share a host, and a state directory that was replaced.
    pub fn identity(&self) -> [u8; 16] {
        self.identity
    }

    /// Keeps one change.
    ///
    /// # Errors
    /// As [`Store::commit_batch`].
    #[cfg(test)]
    pub fn commit(&mut self, state: &State, touched: &Touched) -> Result<()> {
        self.commit_batch(state, Batch { touched: std::slice::from_ref(touched), ..Batch::default() })
    }

    /// Keeps several changes at the price of one; `state` is the one after the last.
    ///
    /// # Errors
    /// As [`Store::commit_batch`].
    #[cfg(test)]
    pub fn commit_many(&mut self, state: &State, touched: &[Touched]) -> Result<()> {
        self.commit_batch(state, Batch { touched, ..Batch::default() })
    }

    /// Keeps what `batch` names of `state`. On return it is on the disk.
    ///
    /// # Errors
    /// When it could not be written: the store is as it was before, or will be with the next commit.
    pub fn commit_batch(&mut self, state: &State, batch: Batch<'_>) -> Result<()> {
        self.try_commit(state, batch).context("writing the state to the store")
    }

    fn try_commit(&mut self, state: &State, batch: Batch<'_>) -> Result<()> {
        #[cfg(test)]
        if self.failing > 0 {
            self.failing -= 1;
            self.doubtful = std::mem::take(&mut self.doubtful).and(batch);
            bail!("no space left on the device that the test gave");
        }
        let database = match self.database.take() {
            Some(database) => database,
            None => self.open_again()?,
        };
        let doubtful = std::mem::take(&mut self.doubtful).and(batch);
        let written = commit(&database, state, batch, &doubtful);
        if written.is_ok() {
            self.database = Some(database);
            return written;
        }
        // After a fault of the disk, redb refuses everything until it is opened again; and how far this came only the
        // disk knows. The file is locked until it is closed.
        drop(database);
        self.doubtful = doubtful;
        match self.open_again() {
            Ok(database) => self.database = Some(database),
            Err(error) => tracing::error!("the store is closed until the next change: {error:#}"),
        }
        written
    }

    /// Hashes of the documents that were last applied from `file`, by the documents' keys.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn applied(&self, file: &Path) -> Result<BTreeMap<DocumentKey, ContentHash>> {
        let file = text(file)?;
        let table = self.database()?.begin_read()?.open_table(FILES)?;
        let mut applied = BTreeMap::new();
        for entry in table.range((file, "")..)? {
            let (key, hash) = entry?;
            let (of, document) = key.value();
            if of != file {
                break;
            }
            applied.insert(document.parse()?, ContentHash(hash.value()));
        }
        Ok(applied)
    }

    /// All files that brought something that was not taken back yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let table = self.database()?.begin_read()?.open_table(FILES)?;
        table.iter()?.map(|entry| Ok(PathBuf::from(entry?.0.value().0))).collect()
    }

    /// What other parts of the agent keep under a name of theirs.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get_extra(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let table = self.database()?.begin_read()?.open_table(EXTRAS)?;
        Ok(table.get(key)?.map(|value| value.value().to_vec()))
    }

    /// Everything that is kept under a name that begins like this, in the order of names.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn extras(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let table = self.database()?.begin_read()?.open_table(EXTRAS)?;
        let mut found = Vec::new();
        for entry in table.range(prefix..)? {
            let (key, value) = entry?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push((key.value().to_owned(), value.value().to_vec()));
        }
        Ok(found)
    }

    fn database(&self) -> Result<&Database> {
        self.database.as_ref().context("the store is closed after a fault of the disk, until the next change")
    }

    fn open_file(path: &Path, limits: Limits) -> Result<(Self, State)> {
        let opened = builder().create(path);
        let database = opened.map_err(|error| explained(error, path))?;
        let identity = prepared(&database).with_context(|| unreadable(path))?;
        let store = Self {
            path: path.to_owned(),
            database: Some(database),
            identity,
            doubtful: Doubtful::default(),
            #[cfg(test)]
            failing: 0,
        };
        let state = store.load(limits).with_context(|| unreadable(path))?;
        Ok((store, state))
    }

    /// The same file, not another one that has taken its place.
    fn open_again(&self) -> Result<Database> {
        let open = || {
            let database = builder().open(&self.path).map_err(|error| explained(error, &self.path))?;
            let identity =
                database.begin_read()?.open_table(META)?.get("identity")?.map(|value| value.value().to_vec());
            if identity.as_deref() != Some(&self.identity) {
                bail!("{} is another store than before: start the agent again", self.path.display());
            }
            Ok(database)
        };
        guarded(&self.path, open).context("opening the store again after a fault")
    }

    fn load(&self, limits: Limits) -> Result<State> {
        let read = self.database()?.begin_read()?;
        let revision = read
            .open_table(META)?
            .get("revision")?
            .map_or(Ok(0), |value| value.value().try_into().map(u64::from_be_bytes).context("reading the revision"))?;
        let (nodes, services) = (read.open_table(NODES)?, read.open_table(SERVICES)?);
        State::restored(limits, revision, records(&nodes)?, records(&services)?)
    }
}

impl Doubtful {
    /// With what `batch` names besides.
    fn and(mut self, batch: Batch<'_>) -> Self {
        for Touched { services, removed_services, removed_backends: _, nodes, removed_nodes } in batch.touched {
            self.services.extend(services.iter().chain(removed_services.iter().map(|(id, _)| id)));
            self.nodes.extend(nodes.iter().chain(removed_nodes.iter().map(|(id, _)| id)));
        }
        // One that the store cannot hold is not in it.
        let marks = batch.marks.iter().filter(|mark| text(&mark.file).is_ok());
        self.marks.extend(marks.map(|mark| (mark.file.clone(), mark.document.clone())));
        self
    }
}

/// Whoever can open the file can read what it holds, and lock it.
fn close_to_others(path: &Path) -> Result<()> {
    let closing = || format!("opening {}: run as root or choose another --state-dir", path.display());
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = file.with_context(closing)?;
    file.set_permissions(Permissions::from_mode(0o600)).with_context(closing)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

/// redb 4 panics on some damaged pages: that is no reason to die without a word of advice.
fn guarded<T>(path: &Path, open: impl FnOnce() -> Result<T>) -> Result<T> {
    let opened = catch_unwind(AssertUnwindSafe(open));
    opened.unwrap_or_else(|_| Err(anyhow!("its pages are damaged").context(unreadable(path))))
}

/// `doubtful`: with what `batch` names.
fn commit(database: &Database, state: &State, batch: Batch<'_>, doubtful: &Doubtful) -> Result<()> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("revision", state.revision().to_be_bytes().as_slice())?;
    write_services(&transaction, state, &doubtful.services)?;
    write_nodes(&transaction, state, &doubtful.nodes)?;
    write_marks(&transaction, batch.marks, &doubtful.marks)?;
    for (key, value) in batch.extras {
        write_extra(&transaction, key, value.as_deref())?;
    }
    transaction.commit()?;
    Ok(())
}

/// Makes the tables of a new store, checks the format of an old one; returns its identity.
fn prepared(database: &Database) -> Result<[u8; 16]> {
    let transaction = database.begin_write()?;
    let identity = {
        let mut meta = transaction.open_table(META)?;
        let format = meta.get("format")?.map(|format| format.value().to_vec());
        match format {
            None => {
                let mut identity = [0; 16];
                let random = fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut identity));
                random.context("reading /dev/urandom")?;
                meta.insert("format", FORMAT.to_be_bytes().as_slice())?;
                meta.insert("identity", identity.as_slice())?;
                identity
            }
            Some(format) if format == FORMAT.to_be_bytes() => {
                let identity = meta.get("identity")?.context("it has no identity")?;
                identity.value().try_into().context("reading its identity")?
            }
            Some(format) => {
                let found = format.try_into().map(u32::from_be_bytes).map_or("unknown".into(), |f: u32| f.to_string());
                bail!("its format is {found}, this version of sluice reads {FORMAT}: use the version that wrote it");
            }
        }
    };
    transaction.open_table(SERVICES)?;
    transaction.open_table(NODES)?;
    transaction.open_table(FILES)?;
    transaction.open_table(EXTRAS)?;
    transaction.commit()?;
    Ok(identity)
}

/// Writes what `state` has under each id, and removes the ids that it has not.
fn write_services(transaction: &WriteTransaction, state: &State, ids: &BTreeSet<ServiceId>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(SERVICES)?;
    for id in ids {
        match state.service_by_id(*id) {
            Some(service) => drop(table.insert(id.0, record(&state.saved(service))?.as_slice())?),
            None => drop(table.remove(id.0)?),
        }
    }
    Ok(())
}

/// As [`write_services`].
fn write_nodes(transaction: &WriteTransaction, state: &State, ids: &BTreeSet<NodeId>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(NODES)?;
    for id in ids {
        match state.node_by_id(*id) {
            Some(node) => drop(table.insert(id.0, record(&node.saved())?.as_slice())?),
            None => drop(table.remove(id.0)?),
        }
    }
    Ok(())
}

/// Removes the marks that are in doubt, and writes the new ones.
fn write_marks(
    transaction: &WriteTransaction,
    marks: &[AppliedMark],
    doubtful: &BTreeSet<(PathBuf, DocumentKey)>,
) -> Result<()> {
    if marks.is_empty() && doubtful.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(FILES)?;
    for (file, document) in doubtful {
        table.remove((text(file)?, &*document.to_string()))?;
    }
    for mark in marks {
        let document = mark.document.to_string();
        let key = (text(&mark.file)?, &*document);
        match mark.hash {
            Some(hash) => drop(table.insert(key, hash.0)?),
            None => drop(table.remove(key)?),
        }
    }
    Ok(())
}

fn write_extra(transaction: &WriteTransaction, key: &str, value: Option<&[u8]>) -> Result<()> {
    let mut table = transaction.open_table(EXTRAS)?;
    match value {
        Some(value) => drop(table.insert(key, value)?),
        None => drop(table.remove(key)?),
    }
    Ok(())
}

fn record(saved: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(saved).context("encoding a record")
}

/// One at a time: with all of them in memory, a start would take twice the memory that the agent needs later.
fn records<T: DeserializeOwned>(
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<impl Iterator<Item = Result<T>>> {
    let decoded = |entry: Result<_, StorageError>| {
        let (id, value): (redb::AccessGuard<u32>, redb::AccessGuard<&[u8]>) = entry?;
        serde_json::from_slice(value.value()).with_context(|| format!("decoding the record of id {}", id.value()))
    };
    Ok(table.iter()?.map(decoded))
}

fn text(file: &Path) -> Result<&str> {
    file.to_str().with_context(|| format!("{} is not a path in UTF-8", file.display()))
}

fn explained(error: DatabaseError, path: &Path) -> anyhow::Error {
    match &error {
        DatabaseError::DatabaseAlreadyOpen => anyhow!(
            "{} is in use by another process: stop the other agent, or give this one a --state-dir of its own",
            path.display()
        ),
        DatabaseError::Storage(StorageError::Io(io)) if io.kind() == std::io::ErrorKind::PermissionDenied => {
            anyhow!(error).context(format!("opening {}: run as root or choose another --state-dir", path.display()))
        }
        _ => anyhow!(error).context(unreadable(path)),
    }
}

fn unreadable(path: &Path) -> String {
    format!(
        "the store {} cannot be read: bring it back from a backup, or move it away to start from nothing \
         (documents and zeros that came over the API are lost then)",
        path.display()
    )
}
