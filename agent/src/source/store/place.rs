//! The file of the store: opened for writing, or for reading alone where the disk takes no writes; made when it is new,
//! brought to this version's format, and what to do when it cannot be used.

use std::{
    fs::{self, OpenOptions, Permissions},
    io::{self, Read},
    os::{
        fd::AsRawFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use redb::{
    CommitError, Database, DatabaseError, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageError, TableDefinition, TableError, TransactionError, WriteTransaction,
};

use super::records::{EXTRAS, MARKS, META, NODES, SERVICES, sealed, unsealed, write_meta};
use crate::host::{ownership, panics::caught};

/// Version of the records. A store of a later version is refused.
const FORMAT: u32 = 2;
/// Before it records had no checksum, and files were text: brought to this one when it is opened.
const FORMER_FORMAT: u32 = 1;
const FORMER_MARKS: TableDefinition<(&str, &str), [u8; 16]> = TableDefinition::new("files");
/// Enough for the pages of a change; the whole state is in memory anyway. Bytes.
const CACHE: usize = 4 << 20;

pub enum Opened {
    Writable(Database),
    /// The disk took no writes when it was opened: the next change tries again.
    ReadOnly(ReadOnlyDatabase),
}

impl Opened {
    /// Opens the file for writing, or if the disk does not allow that for reading.
    ///
    /// # Errors
    /// What is to be done about it.
    pub fn at(path: &Path, is_new: bool) -> Result<Self> {
        let builder = builder();
        let error = match if is_new { builder.create(path) } else { builder.open(path) } {
            Ok(database) => return Ok(Self::Writable(database)),
            Err(error) => anyhow!(error),
        };
        if disk_error(&error).is_some_and(|error| error.kind() != io::ErrorKind::PermissionDenied)
            && let Ok(database) = builder.open_read_only(path)
        {
            tracing::error!("the store {} takes no writes, and it is tried again: {error:#}", path.display());
            return Ok(Self::ReadOnly(database));
        }
        Err(advised(error, path))
    }

    pub fn read(&self) -> Result<ReadTransaction> {
        Ok(match self {
            Self::Writable(database) => database.begin_read()?,
            Self::ReadOnly(database) => database.begin_read()?,
        })
    }

    /// Makes the tables of a new store, and brings an older one to this format; writes nothing otherwise. Returns its
    /// identity.
    pub fn prepared(&self) -> Result<[u8; 16]> {
        match (self.format()?, self) {
            (Some(FORMAT), _) => {}
            (None | Some(FORMER_FORMAT), Self::ReadOnly(_)) => {
                return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)).context("beginning to write it");
            }
            (None, Self::Writable(database)) => written(database, make)?,
            (Some(FORMER_FORMAT), Self::Writable(database)) => written(database, upgrade)?,
            (Some(format), _) => {
                bail!("its format is {format}, this version of sluice reads {FORMAT}: use the version that wrote it")
            }
        }
        self.identity()
    }

    /// # Errors
    /// When it has none, or that is damaged.
    pub fn identity(&self) -> Result<[u8; 16]> {
        self.meta("identity")?.context("it has no identity")?.try_into().ok().context("its identity is damaged")
    }

    /// # Errors
    /// When it is damaged.
    pub fn meta(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let table = self.read()?.open_table(META)?;
        let Some(value) = table.get(key)? else { return Ok(None) };
        Ok(Some(unsealed(key.as_bytes(), value.value()).with_context(|| format!("its {key}"))?.to_vec()))
    }

    /// `None`: it is new.
    fn format(&self) -> Result<Option<u32>> {
        let table = match self.read()?.open_table(META) {
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let Some(format) = table.get("format")? else { return Ok(None) };
        Ok(Some(u32::from_be_bytes(format.value().try_into().context("its format is damaged")?)))
    }
}

/// redb 4 panics on some damaged pages: that is no reason to die without a word of advice.
pub fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    caught(work).unwrap_or_else(|| Err(anyhow!("its pages are damaged").context(unreadable(path))))
}

/// Whoever can open the file can read what it holds, and lock it. Changes nothing of one that is closed to others already:
/// the disk may take no writes.
///
/// # Errors
/// When it cannot be made or closed.
pub fn close_to_others(path: &Path) -> Result<()> {
    let closing = || format!("opening {}: run as root or choose another --state-dir", path.display());
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
        }
        file => file,
    };
    let file = file.with_context(closing)?;
    if file.metadata().with_context(closing)?.mode() & 0o7777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600)).with_context(closing)?;
    }
    Ok(())
}

/// Whether `path` still is `file`.
///
/// # Errors
/// When another file has taken its place: what is written would be lost with the agent.
pub fn is_in_place(file: &fs::File, path: &Path) -> Result<bool> {
    let held = file.metadata().context("looking at the store's file")?;
    match fs::metadata(path) {
        Ok(found) if (found.dev(), found.ino()) == (held.dev(), held.ino()) => Ok(true),
        Ok(_) => bail!(
            "{} is another file than the one that this agent has open: move it away, and the agent puts its own back \
             with the next change; or start the agent again, to take that one",
            path.display()
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("looking for {}", path.display())),
    }
}

/// Copies `file`, which may have no name any more, to `path`. Nothing is being written to it.
///
/// # Errors
/// When the disk does not let it.
pub fn put_back(file: &fs::File, path: &Path) -> Result<()> {
    let directory = path.parent().context("a file is in a directory")?;
    ownership::make_directory(directory, 0o700)?;
    let copy = path.with_extension("copy");
    let mut target = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&copy)?;
    // A reader of its own: a copy begins at the beginning.
    let mut source = fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()?;
    fs::rename(&copy, path)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(())
}

/// Closes the file: redb writes then, and panics on damaged pages as it does elsewhere.
pub fn close(opened: Opened) {
    if caught(|| drop(opened)).is_none() {
        tracing::error!("the store could not be closed as it should be: its pages are damaged");
    }
}

/// What is to be done about an error of the file. A disk that is full or read-only damages nothing.
pub fn advised(error: anyhow::Error, path: &Path) -> anyhow::Error {
    let path_of = path.display();
    if let Some(DatabaseError::DatabaseAlreadyOpen) = error.downcast_ref::<DatabaseError>() {
        return anyhow!(
            "{path_of} is in use by another process: stop the other agent, or give this one a --state-dir of its own"
        );
    }
    match disk_error(&error).map(io::Error::kind) {
        Some(io::ErrorKind::PermissionDenied) => {
            error.context(format!("opening {path_of}: run as root or choose another --state-dir"))
        }
        Some(_) => error.context(format!(
            "the disk does not let the store {path_of} be used, and nothing says that the store is damaged: leave it \
             where it is, see to the disk (room, mount options, the kernel's log), and start the agent again"
        )),
        None => error.context(unreadable(path)),
    }
}

/// An error of the system. Those that redb makes of what it reads have no number of the system.
fn disk_error(error: &anyhow::Error) -> Option<&io::Error> {
    error.chain().find_map(|cause| {
        let storage = cause
            .downcast_ref::<StorageError>()
            .or_else(|| match cause.downcast_ref::<DatabaseError>()? {
                DatabaseError::Storage(storage) => Some(storage),
                _ => None,
            })
            .or_else(|| match cause.downcast_ref::<TransactionError>()? {
                TransactionError::Storage(storage) => Some(storage),
                _ => None,
            })
            .or_else(|| match cause.downcast_ref::<TableError>()? {
                TableError::Storage(storage) => Some(storage),
                _ => None,
            })
            .or_else(|| match cause.downcast_ref::<CommitError>()? {
                CommitError::Storage(storage) => Some(storage),
                _ => None,
            });
        let io = match storage {
            Some(StorageError::Io(io)) => Some(io),
            _ => cause.downcast_ref::<io::Error>(),
        };
        io.filter(|io| io.raw_os_error().is_some() || io.kind() == io::ErrorKind::ReadOnlyFilesystem)
    })
}

fn unreadable(path: &Path) -> String {
    format!(
        "the store {} cannot be read: bring it back from a backup, or move it away to start from nothing \
         (documents and zeros that came over the API are lost then)",
        path.display()
    )
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    builder
}

fn written(database: &Database, write: fn(&WriteTransaction) -> Result<()>) -> Result<()> {
    let transaction = database.begin_write()?;
    write(&transaction)?;
    transaction.open_table(META)?.insert("format", FORMAT.to_be_bytes().as_slice())?;
    transaction.open_table(SERVICES)?;
    transaction.open_table(NODES)?;
    transaction.open_table(MARKS)?;
    transaction.open_table(EXTRAS)?;
    transaction.commit()?;
    Ok(())
}

fn make(transaction: &WriteTransaction) -> Result<()> {
    let mut identity = [0; 16];
    let random = fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut identity));
    random.context("reading /dev/urandom")?;
    write_meta(transaction, "identity", &identity)
}

/// Gives every record its checksum.
fn upgrade(transaction: &WriteTransaction) -> Result<()> {
    tracing::info!("the store is brought to format {FORMAT}: an agent of the former version refuses it from here on");
    {
        let mut meta = transaction.open_table(META)?;
        for key in ["identity", "revision"] {
            let value = meta.get(key)?.map(|value| sealed(key.as_bytes(), value.value()));
            if let Some(value) = value {
                meta.insert(key, value.as_slice())?;
            }
        }
        for definition in [SERVICES, NODES] {
            let mut table = transaction.open_table(definition)?;
            let mut all = Vec::new();
            for entry in table.iter()? {
                let (id, record) = entry?;
                all.push((id.value(), sealed(&id.value().to_be_bytes(), record.value())));
            }
            for (id, record) in all {
                table.insert(id, record.as_slice())?;
            }
        }
        let mut extras = transaction.open_table(EXTRAS)?;
        let mut all = Vec::new();
        for entry in extras.iter()? {
            let (key, value) = entry?;
            all.push((key.value().to_owned(), sealed(key.value().as_bytes(), value.value())));
        }
        for (key, value) in all {
            extras.insert(&*key, value.as_slice())?;
        }
        let (former, mut marks) = (transaction.open_table(FORMER_MARKS)?, transaction.open_table(MARKS)?);
        for entry in former.iter()? {
            let (key, hash) = entry?;
            let (file, document) = key.value();
            let key = [file.as_bytes(), document.as_bytes()].join(&0u8);
            marks.insert((file.as_bytes(), document), sealed(&key, &hash.value()).as_slice())?;
        }
    }
    transaction.delete_table(FORMER_MARKS)?;
    Ok(())
}
