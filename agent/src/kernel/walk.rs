//! The ways to all steered sockets of the host.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{
    object::{Object, STEERED},
    sys::{self, Map},
};
use crate::host::{
    cgroups,
    namespaces::{Namespace, processes, tour},
};

/// One walk over all steered sockets by a program that looks at each of them.
pub enum Walk {
    /// Over the records themselves: all namespaces at once, and no other socket is looked at.
    Records(OwnedFd),
    /// Namespace by namespace, where the kernel refuses the iterator over records, as hardened ones do: each walk goes
    /// through the host's table of all sockets. A socket in a namespace that no process is in any more is not found.
    Namespaces { tcp: OwnedFd, udp: OwnedFd, cgroup: PathBuf },
}

impl Walk {
    /// By the programs `name`, or else `name_tcp` and `name_udp`.
    ///
    /// # Errors
    /// When the kernel refuses both; the error is that of the first.
    pub fn load(object: &mut Object, name: &str, records: &Map, cgroup: &Path) -> Result<Self> {
        let refusal = match iterator(object, name, STEERED, Some(records)) {
            Ok(link) => return Ok(Self::Records(link)),
            Err(error) => error,
        };
        let mut other = |over: &str| iterator(object, &format!("{name}_{over}"), over, None);
        match (other("tcp"), other("udp")) {
            (Ok(tcp), Ok(udp)) => Ok(Self::Namespaces { tcp, udp, cgroup: cgroup.to_owned() }),
            (Err(_), _) | (_, Err(_)) => Err(refusal),
        }
    }

    /// As [`Walk::run`], for counts that must miss nobody.
    ///
    /// # Errors
    /// When a process of the cgroup hides its namespace too.
    pub fn run_thorough(&self) -> Result<Vec<u8>> {
        if let Self::Namespaces { cgroup, .. } = self {
            let (threads, unlisted) = cgroups::threads(cgroup);
            let (_, hidden) = Namespace::of_tasks(threads);
            ensure!(hidden == 0, "{hidden} threads hide their network namespaces: the agent needs CAP_SYS_PTRACE");
            ensure!(unlisted == 0, "the threads of {unlisted} cgroups cannot be listed");
        }
        self.run()
    }

    /// Returns what the program writes.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn run(&self) -> Result<Vec<u8>> {
        match self {
            Self::Records(link) => sys::run_iterator(link).context("walking the steered sockets"),
            Self::Namespaces { tcp, udp, cgroup } => {
                let (threads, _) = cgroups::threads(cgroup);
                let (namespaces, _) = Namespace::of_tasks(processes().chain(threads));
                let walk = |()| {
                    let mut written = sys::run_iterator(tcp).context("walking the TCP sockets of a namespace")?;
                    written.extend(sys::run_iterator(udp).context("walking the UDP sockets of a namespace")?);
                    Ok(written)
                };
                let written = tour(namespaces.iter().map(|namespace| (namespace, ())), walk);
                Ok(written.into_iter().collect::<Result<Vec<_>>>()?.concat())
            }
        }
    }
}

fn iterator(object: &mut Object, name: &str, over: &str, map: Option<&Map>) -> Result<OwnedFd> {
    let program = object.iterator(name, over)?;
    let link = sys::iterator_link(program.as_fd().as_raw_fd(), map.map(Map::fd));
    link.with_context(|| format!("preparing {name}"))
}
