//! Network namespaces that have a draining backend's address, as they were found at earlier looks.
//!
//! A walk over the sockets of a namespace goes through the table of all sockets of the host. Where each pod has a
//! namespace that is a hundred walks a look; so one that was found empty is left out while the kernel counts as many
//! sockets in it as it did then.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::host::namespaces::{Namespace, cookie_here, is_local, tour};

/// How long it is taken for granted which addresses a namespace has.
const STALE: Duration = Duration::from_secs(2);

/// One namespace now.
#[derive(Clone, Copy)]
pub struct CachedNamespace {
    pub cookie: u64,
    /// Whether it has the address of a draining backend.
    pub is_local: bool,
    /// TCP sockets in use, listening ones among them.
    sockets: u64,
}

/// What is remembered from look to look.
#[derive(Default)]
pub struct NamespaceCache {
    addresses: BTreeSet<IpAddr>,
    /// By cookie: when it was asked for the addresses, and which of them it has.
    local: HashMap<u64, (Instant, Vec<IpAddr>)>,
    /// By cookie: sockets in use when nothing was found that a backend has accepted.
    empty: HashMap<u64, u64>,
}

impl CachedNamespace {
    /// One that holds nothing but sockets to be closed.
    pub fn of(cookie: u64) -> Self {
        Self { cookie, is_local: false, sockets: 0 }
    }
}

impl NamespaceCache {
    /// Asks each of the namespaces; when it is to be `thorough`, for its addresses too.
    pub fn of(
        &mut self,
        namespaces: &[Namespace],
        addresses: &BTreeSet<IpAddr>,
        thorough: bool,
    ) -> Vec<Result<CachedNamespace>> {
        if self.addresses != *addresses {
            *self = Self { addresses: addresses.clone(), ..Self::default() };
        }
        let now = Instant::now();
        let mut before = std::mem::take(&mut self.local);
        let mut ask = || {
            let cookie = cookie_here()?;
            let known = before.remove(&cookie).filter(|(asked, _)| !thorough && now.duration_since(*asked) < STALE);
            let (asked, here) =
                known.unwrap_or_else(|| (now, addresses.iter().filter(|address| is_local(address)).copied().collect()));
            let is_local = !here.is_empty();
            self.local.insert(cookie, (asked, here));
            Ok(CachedNamespace { cookie, is_local, sockets: if is_local { sockets_here()? } else { 0 } })
        };
        let namespaces = tour(namespaces.iter().map(|namespace| (namespace, ())), |()| ask());
        self.empty.retain(|cookie, _| self.local.contains_key(cookie));
        namespaces
    }

    /// Those of the addresses that some namespace had when it was asked.
    pub fn here(&self) -> BTreeSet<IpAddr> {
        self.local.values().flat_map(|(_, here)| here).copied().collect()
    }

    /// Whether nothing was accepted there at the last visit, and there are as many sockets as there were then.
    pub fn are_empty(&self, home: &CachedNamespace) -> bool {
        self.empty.get(&home.cookie) == Some(&home.sockets)
    }

    /// Takes note of a visit. Its sockets were counted before.
    pub fn note(&mut self, home: &CachedNamespace, is_empty: bool) {
        if is_empty && home.is_local {
            self.empty.insert(home.cookie, home.sockets);
        } else {
            self.empty.remove(&home.cookie);
        }
    }
}

/// TCP sockets in use in the namespace that this thread is in, of both families.
fn sockets_here() -> Result<u64> {
    let count = |file: &str, label: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        in_use(&text, label).with_context(|| format!("{path} does not count sockets"))
    };
    // Without IPv6 there is no such file.
    Ok(count("sockstat", "TCP:")? + count("sockstat6", "TCP6:").unwrap_or(0))
}

/// Lines are `TCP: inuse 3 orphan 0 ...`.
fn in_use(text: &str, label: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label))?;
    line.trim_start().strip_prefix("inuse ")?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, net::TcpListener};

    use super::*;

    #[test]
    fn sockets_in_use_are_read() {
        let text = "sockets: used 9\nTCP: inuse 3 orphan 0 tw 7 alloc 4 mem 1\nUDP: inuse 1 mem 0\n";
        assert_eq!(in_use(text, "TCP:"), Some(3));
        assert_eq!(in_use("TCP6: inuse 12\n", "TCP6:"), Some(12));
        assert_eq!(in_use(text, "TCP6:"), None);
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(sockets_here().unwrap() > 0);
    }

    #[test]
    fn a_namespace_is_empty_while_it_has_as_many_sockets_as_when_it_was_found_so() {
        let own = [Namespace::of_process(std::process::id()).unwrap()];
        let addresses = BTreeSet::from(["127.0.0.1".parse().unwrap()]);
        let mut namespaces = NamespaceCache::default();
        let home = *namespaces.of(&own, &addresses, false)[0].as_ref().unwrap();
        assert!(home.is_local && !namespaces.are_empty(&home));
        assert_eq!(namespaces.here(), addresses);
        namespaces.note(&home, true);
        assert!(namespaces.are_empty(&home));
        assert!(!namespaces.are_empty(&CachedNamespace { sockets: home.sockets + 1, ..home }));
        namespaces.note(&home, false);
        assert!(!namespaces.are_empty(&home));
        namespaces.note(&home, true);
        // Other addresses: what was known says nothing.
        let elsewhere = BTreeSet::from(["192.0.2.1".parse().unwrap()]);
        let home = *namespaces.of(&own, &elsewhere, false)[0].as_ref().unwrap();
        assert!(!home.is_local && !namespaces.are_empty(&home) && namespaces.here().is_empty());
        let cookies: HashSet<u64> = namespaces.local.keys().copied().collect();
        assert_eq!(cookies, HashSet::from([home.cookie]));
    }
}
