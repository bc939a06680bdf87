//! What the measurements lie on: clients, the agent that steers some of them, and the documents that it holds.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result, ensure};
use sluice_tests::{Agent, Cgroup, Namespace, http};

use crate::worker::{PORT, Worker};

/// Entries of the tables, beyond the agent's own default: 10,000 services of ten backends must fit.
const MAX_BACKENDS: &str = "131072";

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
    /// A worker where nothing steers.
    pub fn new(label: &str) -> Result<Self> {
        let cgroup = Cgroup::new(label)?;
        let (worker, namespace) = worker(&cgroup)?;
        Ok(Self { worker, namespace, cgroup })
    }
}

/// A worker of this cgroup in a namespace of its own.
pub fn worker(cgroup: &Cgroup) -> Result<(Worker, Namespace)> {
    let namespace = Namespace::new()?;
    // One address to come from, as a usual host has.
    namespace.ip("address add 10.255.0.1/32 dev lo")?;
    namespace.ip("route add local 10.0.0.0/8 dev lo src 10.255.0.1")?;
    namespace.ip("route add local fd00::/16 dev lo")?;
    namespace.address("fd00::1".parse::<IpAddr>().context("an address")?)?;
    // A bench makes more connections than there are ports; those that have ended must not hold on to theirs.
    namespace.sysctl("ipv4/tcp_max_tw_buckets", "1")?;
    namespace.sysctl("ipv4/ip_local_port_range", "10000 65000")?;
    Ok((Worker::start(cgroup, &namespace)?, namespace))
}

/// A worker whose cgroup an agent steers.
#[derive(Debug)]
pub struct Steered {
    /// The agent. Before the side: its programs go before the cgroup.
    pub agent: Agent,
    /// The worker.
    pub side: Side,
}

impl Steered {
    /// An agent without documents.
    pub fn empty() -> Result<Self> {
        Self::begin(|agent, _| Ok(agent))
    }

    /// An agent without documents that lives with the backends.
    pub fn probing() -> Result<Self> {
        Self::begin(|agent, side| agent.inside(&side.namespace))
    }

    /// An agent without documents whose tables have these sizes: names and values of its environment.
    pub fn sized(sizes: &[(&str, u64)]) -> Result<Self> {
        let size = |agent: Agent, (name, size): &(&str, u64)| agent.environment(name, &size.to_string());
        Self::begin(|agent, _| Ok(sizes.iter().fold(agent, size)))
    }

    fn begin(place: impl FnOnce(Agent, &Side) -> Result<Agent>) -> Result<Self> {
        let side = Side::new("steered")?;
        let agent = Agent::new(side.cgroup.path())?.quiet().environment("SLUICE_MAX_BACKENDS", MAX_BACKENDS);
        let mut agent = place(agent, &side)?;
        agent.start()?;
        Ok(Self { agent, side })
    }

    /// An agent that holds `services` services of `backends` backends each.
    pub fn new(services: u32, backends: u32) -> Result<Self> {
        let steered = Self::empty()?;
        steered.apply(&document(services, backends))?;
        Ok(steered)
    }

    /// Applies documents.
    pub fn apply(&self, documents: &str) -> Result<()> {
        let request = http::Request::new().body("application/yaml", documents);
        let answer = self.agent.request("POST", "/v1/apply", &request)?;
        ensure!(answer.status == 200, "applying documents: {} {:.500}", answer.status, answer.text());
        Ok(())
    }
}

/// The frontend of a service.
pub fn frontend(service: u32) -> SocketAddr {
    if !is_v6(service) {
        return SocketAddr::from(([10, 96, high(service), low(service)], 80));
    }
    SocketAddr::from(([0xfd00, 0x96, 0, 0, 0, 0, 0, service as u16], 80))
}

/// The frontends of all services of a family.
pub fn frontends(services: u32, v6: bool) -> Vec<SocketAddr> {
    (0..services).filter(|service| is_v6(*service) == v6).map(frontend).collect()
}

/// Addresses that are no frontends.
pub fn elsewhere(number: u32) -> Vec<SocketAddr> {
    (0..number).map(|number| SocketAddr::from(([10, 97, high(number), low(number)], PORT))).collect()
}

/// IPv6 addresses that are no frontends.
pub fn elsewhere6(number: u32) -> Vec<SocketAddr> {
    (0..number).map(|number| SocketAddr::from(([0xfd00, 0x97, 0, 0, 0, 0, 0, number as u16], PORT))).collect()
}

/// Services that have one light backend each, as during a canary. One in five is an IPv6 one, and all of them take TCP
/// and UDP. The backends of one number share a node.
pub fn document(services: u32, backends: u32) -> String {
    document_with(services, backends, "")
}

/// The same with this field in each spec.
pub fn document_with(services: u32, backends: u32, field: &str) -> String {
    let mut text = String::new();
    for service in 0..services {
        // Writing to a string cannot fail.
        let _ = one(&mut text, service, backends, field);
    }
    text
}

fn one(text: &mut String, service: u32, backends: u32, field: &str) -> std::fmt::Result {
    let at = frontend(service);
    writeln!(text, "---\napiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {{name: s{service}}}")?;
    writeln!(text, "spec:\n  frontends: [\"{at}\", \"{at}/udp\"]\n  {field}\n  backends:")?;
    for number in 0..backends {
        let weight = if number == 0 { 10 } else { 30 };
        let address = backend(service, number);
        writeln!(text, "  - {{name: b{number}, address: \"{address}\", node: node-{number}, weight: {weight}}}")?;
    }
    Ok(())
}

/// Below 64 backends a service, none of these is a frontend.
fn backend(service: u32, number: u32) -> SocketAddr {
    if !is_v6(service) {
        return SocketAddr::from(([10, low(number), high(service), low(service)], PORT));
    }
    SocketAddr::from(([0xfd00, 1, 0, 0, 0, 0, number as u16, service as u16], PORT))
}

fn is_v6(service: u32) -> bool {
    service % 5 == 4
}

fn high(number: u32) -> u8 {
    (number >> 8) as u8
}

fn low(number: u32) -> u8 {
    number as u8
}
