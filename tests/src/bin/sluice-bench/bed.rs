//! What the measurements lie on: an agent, the documents that it holds, and clients with it and without.

use std::{
    fmt::Write,
    fs,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use sluice_tests::{Agent, Cgroup, Namespace};
use tempfile::TempDir;

use crate::{
    bpf::{Empty, Hook},
    worker::{PORT, Worker},
};

/// Clients that are steered, and the same clients where nothing steers.
#[derive(Debug)]
pub struct Bed {
    /// In a cgroup that the agent steers.
    pub steered: Side,
    /// In a cgroup with empty programs on the hooks that the agent uses at a connect.
    pub floor: Side,
    /// In a cgroup without programs.
    pub plain: Side,
    /// Steers the first side's cgroup.
    pub agent: Agent,
    _empty: Vec<Empty>,
    _documents: TempDir,
}

/// A worker with a cgroup and a namespace of its own.
#[derive(Debug)]
pub struct Side {
    /// Does the calls.
    pub worker: Worker,
    /// All of 10.0.0.0/8 and fd00::/16 is local there: backends answer on any address.
    pub namespace: Namespace,
    /// What the worker sits in.
    pub cgroup: Cgroup,
}

impl Side {
    fn new(label: &str) -> Result<Self> {
        let (cgroup, namespace) = (Cgroup::new(label)?, Namespace::new()?);
        namespace.ip("route add local 10.0.0.0/8 dev lo")?;
        namespace.ip("route add local fd00::/16 dev lo")?;
        namespace.address("fd00::1".parse::<IpAddr>().context("an address")?)?;
        // A bench makes more connections than there are ports; those that have ended must not hold on to theirs.
        namespace.sysctl("ipv4/tcp_max_tw_buckets", "1")?;
        namespace.sysctl("ipv4/ip_local_port_range", "10000 65000")?;
        Ok(Self { worker: Worker::start(&cgroup, &namespace)?, namespace, cgroup })
    }
}

impl Bed {
    /// An agent that holds `services` services of `backends` backends each.
    pub fn new(services: u32, backends: u32) -> Result<Self> {
        let documents = TempDir::with_prefix("sluice-bench-").context("making a directory")?;
        let file = documents.path().join("services.yaml");
        fs::write(&file, document(services, backends)).with_context(|| format!("writing {}", file.display()))?;
        let [steered, floor, plain] = ["steered", "floor", "plain"].map(Side::new);
        let (steered, floor, plain) = (steered?, floor?, plain?);
        let mut agent = Agent::new(steered.cgroup.path())?.apply(&file);
        agent.start()?;
        let hooks = [Hook::Connect4, Hook::SockOps, Hook::SockRelease];
        let empty = hooks.into_iter().map(|hook| Empty::attach(floor.cgroup.path(), hook)).collect::<Result<_>>()?;
        Ok(Self { steered, floor, plain, agent, _empty: empty, _documents: documents })
    }
}

/// The frontend of a service.
pub fn frontend(service: u32) -> SocketAddr {
    SocketAddr::from(([10, 96, (service >> 8) as u8, service as u8], 80))
}

/// The IPv6 frontend of a service.
pub fn frontend6(service: u32) -> SocketAddr {
    SocketAddr::from(([0xfd00, 0x96, 0, 0, 0, 0, 0, service as u16], 80))
}

/// An address that is no frontend.
pub fn elsewhere(number: u32) -> SocketAddr {
    SocketAddr::from(([10, 97, (number >> 8) as u8, number as u8], PORT))
}

/// An IPv6 address that is no frontend.
pub fn elsewhere6(number: u32) -> SocketAddr {
    SocketAddr::from(([0xfd00, 0x97, 0, 0, 0, 0, 0, number as u16], PORT))
}

/// The address of a backend.
pub fn backend(service: u32, backend: u32) -> SocketAddr {
    SocketAddr::from(([10, (backend & 63) as u8, (service >> 8) as u8, service as u8], PORT))
}

/// One in five services is an IPv6 one; every one is there for TCP and UDP.
pub fn is_v6(service: u32) -> bool {
    service % 5 == 4
}

/// The node of a backend.
pub fn node(backend: u32) -> String {
    format!("node-{backend}")
}

/// Services with one light backend each, as during a canary.
pub fn document(services: u32, backends: u32) -> String {
    let mut text = String::new();
    for service in 0..services {
        // Writing to a string cannot fail.
        let _ = one(&mut text, service, backends);
    }
    text
}

fn one(text: &mut String, service: u32, backends: u32) -> std::fmt::Result {
    let at = if is_v6(service) { frontend6(service) } else { frontend(service) };
    writeln!(text, "---\napiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {{name: s{service}}}")?;
    writeln!(text, "spec:\n  frontends: [\"{at}\", \"{at}/udp\"]\n  backends:")?;
    for number in 0..backends {
        let weight = if number == 0 { 10 } else { 30 };
        let mut address = backend(service, number);
        if is_v6(service) {
            address = SocketAddr::from(([0xfd00, 1, 0, 0, 0, 0, number as u16, service as u16], PORT));
        }
        writeln!(text, "  - {{name: b{number}, address: \"{address}\", node: {}, weight: {weight}}}", node(number))?;
    }
    Ok(())
}
