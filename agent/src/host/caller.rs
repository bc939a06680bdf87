//! Who would be calling, as the connect hook tells callers apart: network namespace, cgroup and bound source address.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr,
};

use anyhow::Result;
use sluice_common::{
    pick::ClientIdentity,
    tables::{Endpoint, TCP},
};

use super::cgroups;
use crate::host::namespaces::{self, Namespace};

/// One fact about a caller. Written `10.1.2.3`, `pid:4711` or `cgroup:/system.slice/web.service`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The address that its socket is bound to before connect().
    Address(IpAddr),
    /// Its process, which tells the network namespace and the cgroup.
    Process(u32),
    Cgroup(String),
}

/// A caller, and what had to be assumed of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub client: ClientIdentity,
    /// What was assumed, in sentences for people.
    pub assumed: Vec<String>,
}

/// Why a text does not describe a caller.
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
        Ok(Self { client: ClientIdentity { netns, cgroup, source }, assumed })
    }
}

/// The kernel's number of the network namespace that a process is in.
fn netns_cookie(pid: u32) -> Result<u64> {
    // The agent's own needs no visit.
    if pid == std::process::id() { namespaces::cookie_here() } else { Namespace::of_process(pid)?.cookie() }
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
