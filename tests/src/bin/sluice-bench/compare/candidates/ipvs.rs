//! IPVS on the clients' host, driven by ipvsadm: weighted round robin, by address translation or by direct routing.

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

/// How packets get to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Their destination is translated (NAT).
    Masquerade,
    /// They go to the backend's host with the frontend's address (DR).
    Route,
}

/// The tables in a host's namespace.
pub struct Ipvs {
    host: Host,
    forward: Forward,
    services: Vec<Service>,
    zeroed: Vec<usize>,
    memory_before: u64,
}

impl Ipvs {
    /// A host without services.
    pub fn new(network: &Network, number: usize, forward: Forward) -> Result<Self> {
        let host = network.host(number, false)?;
        fed(&host, &["ipvsadm", "-C"], "").context("is there IPVS in this kernel?")?;
        let memory_before = kernel_memory()?;
        Ok(Self { host, forward, services: Vec::new(), zeroed: Vec::new(), memory_before })
    }

    /// One command for each backend on these nodes, all in one call.
    fn edit(&self, nodes: &[usize], zero: bool) -> Result<()> {
        let mut text = String::new();
        let mut write = || -> fmt::Result {
            for service in &self.services {
                for (node, weight) in service.weights.iter().filter(|(node, _)| nodes.contains(node)) {
                    let weight = if zero { 0 } else { *weight };
                    self.backend(&mut text, "-e", service, *node, weight)?;
                }
            }
            Ok(())
        };
        write().context("writing commands")?;
        fed(&self.host, &["ipvsadm", "-R"], &text).map(drop)
    }

    fn backend(&self, text: &mut String, verb: &str, service: &Service, node: usize, weight: u32) -> fmt::Result {
        let forward = match self.forward {
            Forward::Masquerade => "-m",
            Forward::Route => "-g",
        };
        let (from, to) = (service.frontend(), service.backend(node));
        writeln!(text, "{verb} -t {from} -r {to} {forward} -w {weight}")
    }
}

impl Candidate for Ipvs {
    fn name(&self) -> &'static str {
        match self.forward {
            Forward::Masquerade => "IPVS NAT",
            Forward::Route => "IPVS DR",
        }
    }

    fn version(&self) -> String {
        version_of(&["ipvsadm", "--version"])
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, services: &[Service]) -> Result<Load> {
        fed(&self.host, &["ipvsadm", "-C"], "")?;
        self.services = services.to_vec();
        self.zeroed.clear();
        let mut text = String::new();
        let mut write = || -> fmt::Result {
            for service in services {
                let affinity = if service.affinity { " -p 10800" } else { "" };
                writeln!(text, "-A -t {} -s wrr{affinity}", service.frontend())?;
                for (node, weight) in &service.weights {
                    self.backend(&mut text, "-a", service, *node, *weight)?;
                }
            }
            Ok(())
        };
        write().context("writing commands")?;
        let start = Instant::now();
        fed(&self.host, &["ipvsadm", "-R"], &text)?;
        Ok(Load::cold(start.elapsed()))
    }

    fn ways(&self) -> &'static [&'static str] {
        &["ipvsadm -R with -e lines"]
    }

    fn zero(&mut self, node: usize, _way: &str) -> Result<()> {
        self.zeroed.push(node);
        self.edit(&[node], true)
    }

    fn restore(&mut self) -> Result<()> {
        let nodes = std::mem::take(&mut self.zeroed);
        self.edit(&nodes, false)
    }

    fn memory(&mut self) -> Result<u64> {
        Ok(kernel_memory()?.saturating_sub(self.memory_before))
    }

    fn memory_is_coarse(&self) -> bool {
        true
    }
}
