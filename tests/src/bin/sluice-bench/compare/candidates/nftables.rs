//! nftables as kube-proxy writes it: a map from addresses to a chain for each service, which draws an end point's chain,
//! which translates the destination. kube-proxy knows no weights: these are drawn from ranges as nft's manual shows.

use std::{
    fmt::{self, Write},
    time::Instant,
};

use anyhow::{Context, Result};

use super::{Candidate, Load, fed, version_of};
use crate::compare::{
    machine::kernel_memory,
    setup::Service,
    topology::{Host, Network},
};

/// The table with everything that all services share.
const BASE: &str = include_str!("../peers/kube-proxy.nft");
/// The clients' network, as kube-proxy knows pods.
const PODS: &str = "10.1.0.0/16";
/// Replaces what changes, in one transaction, as kube-proxy does since Linux 5.13 and nft 1.0.1.
const TRANSACTION: &str = "transaction of changes";
/// Replaces the table.
const WHOLE: &str = "transaction of everything";

/// The rules in a host's namespace.
pub struct Nftables {
    host: Host,
    services: Vec<Service>,
    zeroed: Vec<usize>,
    memory_before: u64,
}

impl Nftables {
    /// A host without rules.
    pub fn new(network: &Network, number: usize) -> Result<Self> {
        let host = network.host(number, false)?;
        let memory_before = kernel_memory()?;
        let mut nftables = Self { host, services: Vec::new(), zeroed: Vec::new(), memory_before };
        nftables.load(&[])?;
        // Connections that have ended would fill the table of all of them in a bench; kube-proxy keeps the kernel's 120 s.
        nftables.host.namespace.sysctl("netfilter/nf_conntrack_tcp_timeout_time_wait", "1")?;
        Ok(nftables)
    }

    fn everything(&self) -> Result<String> {
        let mut text = String::from("table ip kube-proxy\ndelete table ip kube-proxy\n");
        text.push_str(BASE);
        text.push_str("table ip kube-proxy {\n");
        let mut write = || -> fmt::Result {
            self.services.iter().try_for_each(|service| end_points(&mut text, service))?;
            for service in &self.services {
                writeln!(text, "chain service-{} {{", service.number)?;
                rules(&mut text, service, &self.zeroed, "")?;
                writeln!(text, "}}")?;
            }
            writeln!(text, "}}")?;
            self.services.iter().try_for_each(|service| elements(&mut text, service, &self.zeroed))
        };
        write().context("writing rules")?;
        Ok(text)
    }

    fn changes(&self, before: &[usize]) -> Result<String> {
        let mut text = String::new();
        let mut write = || -> fmt::Result {
            for service in &self.services {
                let number = service.number;
                writeln!(text, "flush chain ip kube-proxy service-{number}")?;
                rules(&mut text, service, &self.zeroed, &format!("add rule ip kube-proxy service-{number} "))?;
                if service.open(before).is_empty() != service.open(&self.zeroed).is_empty() {
                    let map = map_of(service, before);
                    writeln!(text, "delete element ip kube-proxy {map} {{ {} }}", key(service))?;
                    elements(&mut text, service, &self.zeroed)?;
                }
            }
            Ok(())
        };
        write().context("writing rules")?;
        Ok(text)
    }

    fn change(&mut self, zeroed: Vec<usize>, way: &str) -> Result<()> {
        let before = std::mem::replace(&mut self.zeroed, zeroed);
        let text = if way == WHOLE { self.everything()? } else { self.changes(&before)? };
        fed(&self.host, &["nft", "-f", "-"], &text).map(drop)
    }
}

impl Candidate for Nftables {
    fn name(&self) -> &'static str {
        "nftables"
    }

    fn version(&self) -> String {
        version_of(&["nft", "--version"])
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, services: &[Service]) -> Result<Load> {
        self.services = services.to_vec();
        self.zeroed.clear();
        let text = self.everything()?;
        let start = Instant::now();
        fed(&self.host, &["nft", "-f", "-"], &text)?;
        Ok(Load::cold(start.elapsed()))
    }

    fn ways(&self) -> &'static [&'static str] {
        &[TRANSACTION, WHOLE]
    }

    fn zero(&mut self, node: usize, way: &str) -> Result<()> {
        let zeroed = self.zeroed.iter().copied().chain([node]).collect();
        self.change(zeroed, way)
    }

    fn restore(&mut self) -> Result<()> {
        self.change(Vec::new(), TRANSACTION)
    }

    fn memory(&mut self) -> Result<u64> {
        Ok(kernel_memory()?.saturating_sub(self.memory_before))
    }

    fn memory_is_coarse(&self) -> bool {
        true
    }
}

/// The chains of a service's end points, and their sets where clients keep them.
fn end_points(text: &mut String, service: &Service) -> fmt::Result {
    for (node, _) in &service.weights {
        let (name, to) = (format!("{}-{node}", service.number), service.backend(*node));
        if service.affinity {
            writeln!(text, "set affinity-{name} {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}")?;
        }
        writeln!(text, "chain endpoint-{name} {{\nip saddr {} jump mark-for-masquerade", to.ip())?;
        if service.affinity {
            writeln!(text, "update @affinity-{name} {{ ip saddr }}")?;
        }
        writeln!(text, "meta l4proto tcp dnat to {to}\n}}")?;
    }
    Ok(())
}

/// The rules of a service's chain, each after these words.
fn rules(text: &mut String, service: &Service, zeroed: &[usize], words: &str) -> fmt::Result {
    let (number, at) = (service.number, service.frontend());
    let open = service.open(zeroed);
    let sum: u32 = open.iter().map(|(_, weight)| weight).sum();
    if sum == 0 {
        return Ok(());
    }
    let masquerade = format!("ip saddr != {PODS} jump mark-for-masquerade");
    writeln!(text, "{words}ip daddr {} tcp dport {} {masquerade}", at.ip(), at.port())?;
    if service.affinity {
        for (node, _) in &open {
            writeln!(text, "{words}ip saddr @affinity-{number}-{node} goto endpoint-{number}-{node}")?;
        }
    }
    write!(text, "{words}numgen random mod {sum} vmap {{ ")?;
    let mut next = 0;
    for (node, weight) in open.iter().filter(|(_, weight)| *weight > 0) {
        let last = next + weight - 1;
        let range = if next == last { next.to_string() } else { format!("{next}-{last}") };
        write!(text, "{range} : goto endpoint-{number}-{node}, ")?;
        next += weight;
    }
    writeln!(text, "}}")
}

fn elements(text: &mut String, service: &Service, zeroed: &[usize]) -> fmt::Result {
    let (map, number) = (map_of(service, zeroed), service.number);
    let chain = if service.open(zeroed).is_empty() { "reject-chain".to_owned() } else { format!("service-{number}") };
    writeln!(text, "add element ip kube-proxy {map} {{ {} : goto {chain} }}", key(service))?;
    // Several services may share an address here.
    writeln!(text, "add element ip kube-proxy cluster-ips {{ {} }}", service.frontend().ip())
}

fn map_of(service: &Service, zeroed: &[usize]) -> &'static str {
    if service.open(zeroed).is_empty() { "no-endpoint-services" } else { "service-ips" }
}

fn key(service: &Service) -> String {
    let at = service.frontend();
    format!("{} . tcp . {}", at.ip(), at.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_ranges_without_gaps() {
        let mut text = String::new();
        rules(&mut text, &Service::weighted(7, 80, &[95, 0, 5]), &[], "").unwrap();
        let drawn = "numgen random mod 100 vmap { 0-94 : goto endpoint-7-0, 95-99 : goto endpoint-7-2, }";
        assert_eq!(text.lines().last(), Some(drawn));
    }
}
