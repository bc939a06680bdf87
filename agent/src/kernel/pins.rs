//! The directory of pins: who owns it, whether what it holds can be adopted, and its removal.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::{fd::RawFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::{
        stat::{major, minor},
        statfs::{BPF_FS_MAGIC, statfs},
    },
    unistd::geteuid,
};
use sluice_common::{
    ABI_VERSION, FORMER_ABI_VERSION,
    registry::{self, Keep, Sizes, Spec},
    tables,
    verdict::Program,
};

use super::sys::{self, Map};
use crate::host::ownership;

/// Where the pins of one data plane are: `maps/NAME` and `links/NAME`.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
}

/// Ownership of a directory; ends with the process, however that ends.
pub struct Lock {
    /// `None`: a process that is no agent holds it.
    _file: Option<Flock<File>>,
}

impl Lock {
    /// Takes an open file or directory for this process; `path` is what it stands for.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn of(file: File, path: &Path) -> Result<Self> {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { _file: Some(file) }),
            Err((file, nix::Error::EWOULDBLOCK)) if is_held_by_strangers(&file) => {
                tracing::warn!("a process that is no agent's holds the lock of {}: it is passed over", path.display());
                Ok(Self { _file: None })
            }
            Err((_, nix::Error::EWOULDBLOCK)) => bail!(
                "another agent owns {}: stop it first, or give this one its own --bpffs, --state-dir, --socket and --cgroup",
                path.display()
            ),
            Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

impl Directory {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// When it is on no bpffs, or cannot be made.
    pub fn open(path: &Path) -> Result<Self> {
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        let kind = statfs(existing).with_context(|| format!("looking at {}", existing.display()))?.filesystem_type();
        ensure!(
            kind == BPF_FS_MAGIC,
            "{} is not on a bpf file system, so nothing can be pinned there: run `mount -t bpf bpf /sys/fs/bpf`, or \
             give --bpffs a directory on one",
            path.display()
        );
        for part in ["", "maps", "links"] {
            let directory = path.join(part);
            let made = ownership::make_directory(&directory, 0o700);
            made.with_context(|| {
                format!(
                    "whoever may write {} can end steering: remove it, or choose another --bpffs",
                    directory.display()
                )
            })?;
        }
        // Whoever can open a directory can lock it, and keep agents from starting.
        ownership::close(path, &["maps", "links"])?;
        Ok(Self { path: path.to_owned() })
    }

    /// Takes the directory for this process.
    ///
    /// # Errors
    /// When another agent has it.
    pub fn lock(&self) -> Result<Lock> {
        let directory = File::open(&self.path).with_context(|| format!("opening {}", self.path.display()))?;
        Lock::of(directory, &self.path)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join("maps").join(name)
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.path.join("links").join(name)
    }

    /// # Errors
    /// When the tables were made by an agent with layouts that this one cannot take over.
    pub fn check_version(&self) -> Result<()> {
        let Some(meta) = pinned(&self.map(registry::META.spec.name))? else {
            return Ok(());
        };
        let size = meta.info().context("asking for the size of META")?.value_size as usize;
        let mut value = vec![0u8; size.max(size_of::<tables::Meta>())];
        meta.lookup_bytes(0, &mut value).context("reading META")?;
        let version = u32::from_ne_bytes([value[0], value[1], value[2], value[3]]);
        // 0: an agent died after it had made the table and before it had loaded a program.
        ensure!(
            matches!(version, 0 | FORMER_ABI_VERSION | ABI_VERSION),
            "{} holds tables of version {version}, and this sluice speaks version {ABI_VERSION}: steering goes on as it \
             is. Run the sluice that made them, or remove them with `sluice uninstall --bpffs {} --keep-state` (no \
             connection is steered until this agent has started; the configuration is kept)",
            self.path.display(),
            self.path.display()
        );
        Ok(())
    }

    /// # Errors
    /// When a table that is pinned where `pin` says has another shape than the one asked for: it names both, and the flag.
    pub fn check_shapes(&self, sizes: &Sizes, pin: impl Fn(&Spec) -> PathBuf) -> Result<()> {
        for table in registry::ALL.iter().filter(|table| table.keep == Keep::Pinned) {
            let Some(map) = pinned(&pin(table))? else { continue };
            let name = table.name;
            let found = map.info().with_context(|| format!("asking for the size of {name}"))?;
            ensure!(
                (found.map_type, found.key_size, found.value_size, found.flags)
                    == (table.kind.number(), table.key, table.value, table.kind.flags()),
                "the pinned table {name} has entries of {} + {} bytes (type {}, flags {}), and this sluice wants {} + {} \
                 (type {}, flags {}): run the sluice that made it, or remove it with `sluice uninstall --bpffs {} \
                 --keep-state`",
                found.key_size,
                found.value_size,
                found.map_type,
                found.flags,
                table.key,
                table.value,
                table.kind.number(),
                table.kind.flags(),
                self.path.display()
            );
            let (entries, flag) = (table.entries.of(sizes), table.entries.flag().unwrap_or("this sluice"));
            let counted = |entries| table.entries.in_units_of_flag(entries);
            ensure!(
                found.max_entries == entries,
                "the pinned table {name} has {} entries, and {flag} asks for {}: start with {flag} {}, or remove it with \
                 `sluice uninstall --bpffs {} --keep-state` (no connection is steered until this agent has started)",
                counted(found.max_entries),
                counted(entries),
                counted(found.max_entries),
                self.path.display()
            );
        }
        Ok(())
    }

    /// Whether no agent was here before.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn is_new(&self) -> Result<bool> {
        Ok(self.pins("maps")?.is_empty())
    }

    /// Removes every pin, see [`uninstall`].
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove(&self) -> Result<Vec<PathBuf>> {
        let held = self.held()?;
        for path in &held {
            let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
            removed.with_context(|| format!("removing {}", path.display()))?;
        }
        Ok(held)
    }

    /// Every pin and directory, in the order in which they are removed.
    fn held(&self) -> Result<Vec<PathBuf>> {
        let mut links = self.pins("links")?;
        // What steers goes first, and with it what another version or an unfinished replacement has left.
        let place = |pin: &PathBuf| {
            let name = pin.file_name().unwrap_or_default();
            Program::ORDER.iter().rev().position(|program| name == program.name())
        };
        links.sort_by_key(place);
        let directories = ["maps", "links", ""].map(|part| self.path.join(part)).into_iter();
        Ok(links.into_iter().chain(self.pins("maps")?).chain(directories.filter(|path| path.is_dir())).collect())
    }

    /// Everything that is pinned in one part, in the order of names.
    fn pins(&self, part: &str) -> Result<Vec<PathBuf>> {
        let directory = self.path.join(part);
        let context = || format!("listing {}", directory.display());
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(context),
        };
        let pins: Result<Vec<_>, _> = entries.map(|entry| entry.map(|entry| entry.path())).collect();
        let mut pins = pins.with_context(context)?;
        pins.sort();
        Ok(pins)
    }
}

/// Pins something, in place of whatever is there.
///
/// # Errors
/// When the kernel refuses, or a directory stands in the way.
pub fn pin_over(descriptor: RawFd, pin: &Path) -> Result<()> {
    // No dot: bpffs reserves names with one.
    let mut fresh = pin.to_owned().into_os_string();
    fresh.push("_new");
    // An agent that was killed below left it.
    let _ = fs::remove_file(&fresh);
    sys::pin(descriptor, Path::new(&fresh)).with_context(|| format!("pinning {}", pin.display()))?;
    fs::rename(&fresh, pin).with_context(|| format!("moving the pin to {}", pin.display()))
}

/// Whether all who hold a lock are users that can run no agent. Lines of /proc/locks: number, kind, `ADVISORY`, access,
/// process, `MAJOR:MINOR:INODE` with the device in hexadecimal digits, range.
fn is_held_by_strangers(file: &File) -> bool {
    let (Ok(metadata), Ok(locks)) = (file.metadata(), fs::read_to_string("/proc/locks")) else { return false };
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let is_stranger = |process: &str| {
        let owner = fs::metadata(format!("/proc/{process}")).map(|metadata| metadata.uid());
        owner.is_ok_and(|owner| owner != 0 && owner != geteuid().as_raw())
    };
    let holders = locks.lines().filter_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str())).then(|| fields[4].to_owned())
    });
    let holders: Vec<_> = holders.collect();
    !holders.is_empty() && holders.iter().all(|process| is_stranger(process))
}

/// The table that is pinned at a path, if there is one.
///
/// # Errors
/// When it cannot be opened.
pub fn pinned(path: &Path) -> Result<Option<Map>> {
    match Map::pinned(path) {
        Ok(map) => Ok(Some(map)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening the pinned table {}", path.display())),
    }
}

/// Detaches the programs and removes every pin. Returns what was removed, in order: the hooks that steer go first, so
/// that none of them is left without those that follow and translate. `dry_run`: what would be.
///
/// # Errors
/// When an agent still runs there, or a pin cannot be removed.
pub fn uninstall(path: &Path, dry_run: bool) -> Result<Vec<PathBuf>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    ownership::check(path).context("what is pinned there may be another's")?;
    let directory = Directory { path: path.to_owned() };
    let _lock = directory.lock()?;
    if dry_run { directory.held() } else { directory.remove() }
}
