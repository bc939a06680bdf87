//! No steering: clients go to the backends in turn. The limit.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::{Candidate, Load};
use crate::compare::{
    setup::Service,
    topology::{Host, Network},
};

/// Nothing.
pub struct Direct {
    host: Host,
}

impl Direct {
    /// A host without anything.
    pub fn new(network: &Network, number: usize) -> Result<Self> {
        Ok(Self { host: network.host(number, false)? })
    }
}

impl Candidate for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn version(&self) -> String {
        "no steering".to_owned()
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, _services: &[Service]) -> Result<Load> {
        Ok(Load::default())
    }

    fn targets(&self, service: &Service) -> Vec<SocketAddr> {
        service.weights.iter().map(|(node, _)| service.backend(*node)).collect()
    }

    fn ways(&self) -> &'static [&'static str] {
        &[]
    }

    fn zero(&mut self, _node: usize, _way: &str) -> Result<()> {
        bail!("nothing steers here")
    }

    fn restore(&mut self) -> Result<()> {
        Ok(())
    }

    fn memory(&mut self) -> Result<u64> {
        Ok(0)
    }
}
