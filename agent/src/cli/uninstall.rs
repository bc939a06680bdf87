//! `sluice uninstall`: end steering and remove every trace.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::{failure::Failure, output};
use crate::{http::listen, kernel, settings, source::store};

/// End steering: detach and unpin everything, and remove the stored state
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice uninstall\n  sluice uninstall --dry-run\n  sluice uninstall --keep-state\n  sluice uninstall --bpffs /sys/fs/bpf/test --state-dir /tmp/s\n\n\
        Stop the agent first. Connections go on where they are; new ones go to the address that was asked for."
)]
pub struct UninstallArguments {
    /// Directory on a bpffs with the pinned programs and tables
    #[arg(long, env = "SLUICE_BPFFS", hide_env_values = true, default_value = settings::BPFFS, value_name = "DIR")]
    bpffs: PathBuf,
    /// Directory of the store
    #[arg(long, env = "SLUICE_STATE_DIR", hide_env_values = true, default_value = settings::STATE_DIR, value_name = "DIR")]
    state_dir: PathBuf,
    /// Leave the stored services and nodes: the next agent begins with them
    #[arg(long)]
    keep_state: bool,
    /// Show what would be removed; remove nothing
    #[arg(long)]
    dry_run: bool,
}

impl UninstallArguments {
    pub fn run(self, socket: Option<PathBuf>) -> std::result::Result<(), Failure> {
        let socket = socket.unwrap_or_else(|| settings::SOCKET.into());
        // First what a running agent would refuse, so that nothing is left half done.
        let store = if self.keep_state { None } else { StateFile::claim(&self.state_dir)? };
        if store.is_some() && !self.bpffs.exists() {
            self.refuse_elsewhere()?;
        }
        let mut removed = kernel::uninstall(&self.bpffs, self.dry_run)?;
        if let Some(store) = store {
            removed.extend(if self.dry_run { store.held(&self.state_dir) } else { store.remove(&self.state_dir)? });
        }
        let is_stale = if self.dry_run { listen::is_stale(&socket) } else { listen::remove_stale(&socket)? };
        if is_stale {
            removed.push(socket);
        }
        if removed.is_empty() {
            return output::print("there was nothing to remove\n");
        }
        let would = if self.dry_run { "would remove" } else { "removed" };
        let lines: String = removed.iter().map(|path| format!("{would} {}\n", path.display())).collect();
        output::print(&lines)
    }
}

impl UninstallArguments {
    /// # Errors
    /// When programs are pinned beside the place that was named: the store may be theirs, and they would steer on without.
    fn refuse_elsewhere(&self) -> Result<()> {
        let beside = self.bpffs.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
        let entries = fs::read_dir(beside).into_iter().flatten().flatten();
        let mut pinned = entries.map(|entry| entry.path()).filter(|path| path.join("links").is_dir());
        let Some(found) = pinned.next() else { return Ok(()) };
        bail!(
            "nothing is pinned in {}, but there are pins in {}: name the right one with --bpffs. Nothing was removed. If the \
             store in {} belongs to neither, remove that directory yourself",
            self.bpffs.display(),
            found.display(),
            self.state_dir.display()
        )
    }
}

/// The file of a store that no agent uses, locked against one that starts now.
struct StateFile {
    path: PathBuf,
    _lock: File,
}

impl StateFile {
    /// `None`: there is none.
    fn claim(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join(store::FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("opening {}", path.display())),
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: file })),
            Err(TryLockError::WouldBlock) => {
                bail!("an agent uses {}: stop it first, then uninstall", path.display())
            }
            Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }

    /// What [`StateFile::remove`] would remove.
    fn held(&self, directory: &Path) -> Vec<PathBuf> {
        let is_alone = fs::read_dir(directory).is_ok_and(|entries| entries.count() == 1);
        let directory = is_alone.then(|| directory.to_owned());
        [self.path.clone()].into_iter().chain(directory).collect()
    }

    /// Removes the store, and its directory unless it holds other files.
    fn remove(self, directory: &Path) -> Result<Vec<PathBuf>> {
        fs::remove_file(&self.path).with_context(|| format!("removing {}", self.path.display()))?;
        let mut removed = vec![self.path];
        if fs::remove_dir(directory).is_ok() {
            removed.push(directory.to_owned());
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_in_use_stays() {
        let directory = tempfile::tempdir().unwrap();
        let state = directory.path().join("state");
        assert!(StateFile::claim(&state).unwrap().is_none());
        let limits = crate::model::Limits { services: 4, backends: 4, nodes: 4, frontends: 4 };
        let agent = store::Store::open(&state, limits, false).unwrap();
        let error = StateFile::claim(&state).err().unwrap().to_string();
        assert!(error.contains("stop it first"), "{error}");
        drop(agent);
        let would = StateFile::claim(&state).unwrap().unwrap().held(&state);
        let removed = StateFile::claim(&state).unwrap().unwrap().remove(&state).unwrap();
        assert_eq!(would, removed);
        assert_eq!(removed, [state.join(store::FILE), state.clone()]);
        assert!(!state.exists());
    }

    #[test]
    fn files_of_others_stay() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join(store::FILE), "").unwrap();
        fs::write(directory.path().join("precious"), "").unwrap();
        let claimed = StateFile::claim(directory.path()).unwrap().unwrap();
        assert_eq!(claimed.held(directory.path()), [directory.path().join(store::FILE)]);
        assert_eq!(claimed.remove(directory.path()).unwrap(), [directory.path().join(store::FILE)]);
        assert!(directory.path().join("precious").exists());
    }
}
