//! A cgroup of the test's own.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::system::{cgroup2, eventually, unique};

/// A child of the cgroup2 root. Dropping it ends every process that is still inside and removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a cgroup; the label is for people who look at a running test.
    pub fn new(label: &str) -> Result<Self> {
        Self::at(cgroup2()?.join(unique(label)))
    }

    /// Makes a cgroup below this one. Drop it first.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::at(self.path.join(name))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process, with all of its threads, into this cgroup.
    pub fn adopt(&self, process: u32) -> Result<()> {
        enter(&self.path, process)
    }

    /// The processes inside.
    pub fn processes(&self) -> Result<Vec<u32>> {
        let file = self.path.join("cgroup.procs");
        let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    fn at(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("making the cgroup {}", path.display()))?;
        Ok(Self { path })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Linux 5.14 and newer. Removing works only once the last process is reaped.
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let gone = eventually("the cgroup empties", Duration::from_secs(5), || {
            let removed = fs::remove_dir(&self.path);
            (removed.is_ok() || !self.path.exists()).then_some(())
        });
        if gone.is_err() {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

/// Moves a process into the cgroup at `path`; process 0 is the caller.
pub(crate) fn enter(path: &Path, process: u32) -> Result<()> {
    let file = path.join("cgroup.procs");
    fs::write(&file, process.to_string()).with_context(|| format!("writing {process} to {}", file.display()))
}
