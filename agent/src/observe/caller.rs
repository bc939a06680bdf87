//! Who would be calling, as the connect hook tells callers apart: network namespace, cgroup and bound source address.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    getsockopt_impl,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
};
use sluice_common::{
    pick::Client,
    tables::{Endpoint, TCP},
};

use super::cgroups;

/// One fact about a caller. Written `10.1.2.3`, `pid:4711` or `cgroup:/system.slice/web.service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The address that its socket is bound to before connect().
    Address(IpAddr),
    /// Its process, which tells the network namespace and the cgroup.
    Process(u32),
    Cgroup(String),
}

/// A caller, and what had to be supposed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub client: Client,
    /// Sentences for people.
    pub assumed: Vec<String>,
}

/// Why a text says nothing about a caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no caller: write an IP address, pid:NUMBER or cgroup:PATH")]
pub struct FromError(String);

impl FromStr for From {
    type Err = FromError;

    fn from_str(text: &str) -> Result<Self, FromError> {
        let wrong = || FromError(text.to_owned());
        match text.split_once(':') {
            Some(("pid", pid)) => pid.parse().map(Self::Process).map_err(|_| wrong()),
            Some(("cgroup", path)) if !path.is_empty() => Ok(Self::Cgroup(path.to_owned())),
            _ => text.parse().map(Self::Address).map_err(|_| wrong()),
        }
    }
}

impl Caller {
    /// Looks up what `facts` name. Opens files and starts a thread: not for a thread that others wait for.
    ///
    /// # Errors
    /// When a process or cgroup is not there.
    pub fn find(facts: &[From]) -> Result<Self> {
        let (mut netns, mut cgroup, mut source) = (None, None, None);
        for fact in facts {
            match fact {
                From::Address(address) => source = Some(*address),
                From::Process(pid) => {
                    netns = Some(netns_cookie(*pid)?);
                    cgroup.get_or_insert(cgroups::id(&cgroups::of_process(*pid)?)?);
                }
                From::Cgroup(path) => cgroup = Some(cgroups::id(Path::new(path))?),
            }
        }
        let mut assumed = Vec::new();
        let own = std::process::id();
        let netns = match netns {
            Some(cookie) => cookie,
            None => {
                assumed.push("the caller is in the agent's network namespace; pid:NUMBER would tell".to_owned());
                netns_cookie(own)?
            }
        };
        let cgroup = match cgroup {
            Some(id) => id,
            None => {
                assumed.push("the caller is in the agent's cgroup; pid:NUMBER or cgroup:PATH would tell".to_owned());
                cgroups::id(&cgroups::of_process(own)?)?
            }
        };
        if source.is_none() {
            assumed.push("its socket is not bound to an address before connect()".to_owned());
        }
        let source = source.map_or([0; 4], |address| Endpoint::new(SocketAddr::new(address, 0), TCP).address);
        Ok(Self { client: Client { netns, cgroup, source }, assumed })
    }
}

sockopt_impl!(
    /// The kernel's number of the network namespace of a socket (Linux 5.14 and later).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// The kernel's number of the network namespace that a process is in.
fn netns_cookie(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/ns/net");
    let there = fs::metadata(&path).with_context(|| format!("opening {path}: is there a process {pid}?"))?;
    let here = fs::metadata("/proc/thread-self/ns/net").context("opening the agent's network namespace")?;
    if same(&there, &here) {
        return cookie_here();
    }
    let namespace = File::open(&path).with_context(|| format!("opening {path}"))?;
    // A thread of its own goes there and ends there: no other ever runs in the wrong namespace.
    let visitor = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
        cookie_here()
    });
    visitor.join().map_err(|_| anyhow!("the visit to the network namespace of process {pid} failed"))?
}

fn cookie_here() -> Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a socket to read its network namespace")?;
    getsockopt(&socket, NetnsCookie).context("reading SO_NETNS_COOKIE")
}

fn same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_read() {
        assert_eq!("10.1.2.3".parse(), Ok(From::Address([10, 1, 2, 3].into())));
        assert_eq!("fd00::1".parse(), Ok(From::Address("fd00::1".parse().unwrap())));
        assert_eq!("pid:17".parse(), Ok(From::Process(17)));
        assert_eq!("cgroup:/a:b".parse(), Ok(From::Cgroup("/a:b".into())));
        for wrong in ["", "pid:", "pid:x", "cgroup:", "10.1.2.3:80", "host"] {
            assert!(wrong.parse::<From>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_process_of_this_namespace_has_its_cookie() {
        let own = netns_cookie(std::process::id()).unwrap();
        assert_ne!(own, 0);
        assert!(netns_cookie(u32::MAX).unwrap_err().to_string().contains("is there a process"));
    }
}
