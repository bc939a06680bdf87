//! The embedded store: what the agent knows survives restarts and power loss. Every commit is one durable transaction,
//! so that what is found again is the state after some change, never half of one.

mod place;
mod records;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use redb::Database;

use self::{
    place::{Opened, advised, close, close_to_others, guarded, is_in_place, put_back},
    records::{decoded, write_everything, write_extra, write_marks, write_meta, write_nodes, write_services},
};
use crate::{
    host::ownership,
    model::{Limits, NodeId, ServiceId, State, Touched, document::DocumentKey, parse::ContentHash, saved::Restored},
};

/// Name of the store's file in the state directory.
pub const FILE: &str = "sluice.redb";
/// Damaged records that a refusal names.
const NAMED: usize = 5;

pub struct Store {
    path: PathBuf,
    /// The file that is open, wherever its name has gone.
    file: File,
    /// `None` when it could not be opened again after a fault: the next change tries once more.
    database: Option<Opened>,
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
    /// Opens the store in `dir`, both made when missing, and reads the state from it. Writes nothing unless the store is
    /// new, or a former version's. With `accept_damage` records that are damaged are left out for good, and the rest is
    /// kept.
    ///
    /// # Errors
    /// When another process has it open, or it cannot be used; the message says what to do.
    pub fn open(dir: &Path, limits: Limits, accept_damage: bool) -> Result<(Self, State)> {
        let made = ownership::make_directory(dir, 0o700);
        made.with_context(|| format!("the state directory {}: choose another --state-dir", dir.display()))?;
        ownership::close(dir, &[FILE])?;
        let path = dir.join(FILE);
        close_to_others(&path)?;
        guarded(&path, || Self::open_file(&path, limits, accept_damage))
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
        // First, whatever happens: what this cannot write is written by the next commit that can.
        self.doubtful = std::mem::take(&mut self.doubtful).and(batch);
        if !is_in_place(&self.file, &self.path)? {
            self.put_back()?;
        }
        let database = match self.database.take() {
            Some(Opened::Writable(database)) => database,
            closed => {
                // Before it is opened anew: the file is locked until then.
                if let Some(closed) = closed {
                    close(closed);
                }
                match self.open_again()? {
                    Opened::Writable(database) => database,
                    read_only @ Opened::ReadOnly(_) => {
                        self.database = Some(read_only);
                        bail!("the disk takes no writes");
                    }
                }
            }
        };
        let written = guarded(&self.path, || {
            #[cfg(test)]
            anyhow::ensure!(self.failing == 0, "no space left on the device that the test gave");
            commit(&database, state, batch, &self.doubtful)
        });
        if written.is_ok() {
            self.database = Some(Opened::Writable(database));
            self.doubtful = Doubtful::default();
            return written;
        }
        #[cfg(test)]
        {
            self.failing = self.failing.saturating_sub(1);
        }
        // After a fault of the disk, redb refuses everything until it is opened again; and how far this came only the
        // disk knows. The file is locked until it is closed.
        close(Opened::Writable(database));
        match self.open_again() {
            Ok(database) => self.database = Some(database),
            Err(error) => tracing::error!("the store is closed until the next change: {error:#}"),
        }
        written
    }

    /// Gives the file that is open its name again.
    fn put_back(&mut self) -> Result<()> {
        tracing::error!("somebody has removed {}: the agent puts its store back", self.path.display());
        put_back(&self.file, &self.path).with_context(|| format!("putting {} back", self.path.display()))?;
        if let Some(closed) = self.database.take() {
            close(closed);
        }
        self.file = File::open(&self.path)?;
        self.database = Some(self.open_again()?);
        Ok(())
    }

    /// Hashes of the documents that were last applied from `file`, by the documents' keys.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn applied(&self, file: &Path) -> Result<BTreeMap<DocumentKey, ContentHash>> {
        self.read(|read| records::marks_of(read, file))
    }

    /// All files that brought something that was not taken back yet.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn files(&self) -> Result<BTreeSet<PathBuf>> {
        self.read(records::files)
    }

    /// What other parts of the agent keep under a name of theirs.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn get_extra(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let found = self.extras(key)?.into_iter().find(|(name, _)| name == key);
        Ok(found.map(|(_, record)| record))
    }

    /// Everything that is kept under a name that begins like this, in the order of names.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn extras(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
        self.read(|read| records::extras(read, prefix))
    }

    fn read<T>(&self, work: impl FnOnce(&redb::ReadTransaction) -> Result<T>) -> Result<T> {
        let database =
            self.database.as_ref().context("the store is closed after a fault of the disk, until the next change")?;
        guarded(&self.path, || work(&database.read()?))
    }

    fn open_file(path: &Path, limits: Limits, accept_damage: bool) -> Result<(Self, State)> {
        let database = Opened::at(path, true)?;
        let identity = database.prepared().map_err(|error| advised(error, path))?;
        let mut store = Self {
            path: path.to_owned(),
            file: File::open(path).with_context(|| format!("opening {}", path.display()))?,
            database: Some(database),
            identity,
            doubtful: Doubtful::default(),
            #[cfg(test)]
            failing: 0,
        };
        let Restored { state, damaged } = store.load(limits).map_err(|error| advised(error, path))?;
        if !damaged.is_empty() {
            store.leave_out(&state, &damaged, accept_damage)?;
        }
        Ok((store, state))
    }

    /// Takes the records that are damaged out of the store, if that is accepted.
    fn leave_out(&mut self, state: &State, damaged: &[anyhow::Error], accepted: bool) -> Result<()> {
        let named: Vec<_> = damaged.iter().take(NAMED).map(|error| format!("{error:#}")).collect();
        let more = damaged.len().saturating_sub(NAMED);
        let named = named.join("; ") + &if more > 0 { format!("; and {more} more") } else { String::new() };
        if !accepted {
            bail!(
                "the store {} holds records that cannot be used ({named}). Steering goes on as it is. Bring the store \
                 back from a backup, or start the agent once with --accept-damage: it begins without these records and \
                 keeps all others. Files bring their services again; nodes whose record is lost are zeroed until they \
                 are restored",
                self.path.display()
            );
        }
        tracing::error!("{} records of the store are left out: {named}", damaged.len());
        let Some(Opened::Writable(database)) = &self.database else { bail!("the disk takes no writes") };
        let transaction = database.begin_write()?;
        write_everything(&transaction, state)?;
        transaction.commit().context("taking damaged records out of the store")
    }

    /// The same file, not another one that has taken its place.
    fn open_again(&self) -> Result<Opened> {
        let open = || {
            let database = Opened::at(&self.path, false)?;
            if database.identity()? != self.identity {
                bail!("{} is another store than before: start the agent again", self.path.display());
            }
            Ok(database)
        };
        guarded(&self.path, open).context("opening the store again after a fault")
    }

    fn load(&self, limits: Limits) -> Result<Restored<anyhow::Error>> {
        let database = self.database.as_ref().context("it is closed")?;
        let read = database.read()?;
        let revision = database
            .meta("revision")?
            .map_or(Ok(0), |value| value.try_into().map(u64::from_be_bytes).ok().context("its revision is damaged"))?;
        let (nodes, services) = (read.open_table(records::NODES)?, read.open_table(records::SERVICES)?);
        let (nodes, services) = (decoded("node", &nodes)?, decoded("service", &services)?);
        Ok(State::restored(limits, revision, nodes, services, Timestamp::now()))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(database) = self.database.take() {
            close(database);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("path", &self.path).field("doubtful", &self.doubtful).finish_non_exhaustive()
    }
}

impl Doubtful {
    /// With what `batch` names besides.
    fn and(mut self, batch: Batch<'_>) -> Self {
        for Touched { services, removed_services, removed_backends: _, nodes, removed_nodes } in batch.touched {
            self.services.extend(services.iter().chain(removed_services.iter().map(|(id, _)| id)));
            self.nodes.extend(nodes.iter().chain(removed_nodes.iter().map(|(id, _)| id)));
        }
        self.marks.extend(batch.marks.iter().map(|mark| (mark.file.clone(), mark.document.clone())));
        self
    }
}

/// `doubtful`: with what `batch` names.
fn commit(database: &Database, state: &State, batch: Batch<'_>, doubtful: &Doubtful) -> Result<()> {
    let transaction = database.begin_write()?;
    write_meta(&transaction, "revision", &state.revision().to_be_bytes())?;
    write_services(&transaction, state, &doubtful.services)?;
    write_nodes(&transaction, state, &doubtful.nodes)?;
    write_marks(&transaction, batch.marks, &doubtful.marks)?;
    for (key, value) in batch.extras {
        write_extra(&transaction, key, value.as_deref())?;
    }
    transaction.commit()?;
    Ok(())
}
