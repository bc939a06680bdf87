//! The usual surroundings of a test.

use std::{net::SocketAddr, path::Path};

use anyhow::Result;

use crate::{Agent, Cgroup, Client, Namespace, Server};

/// A cgroup whose connections are steered, and a namespace in which clients and servers live on loopback addresses.
#[derive(Debug)]
pub struct World {
    /// Where clients live.
    pub cgroup: Cgroup,
    /// Where clients and servers live.
    pub namespace: Namespace,
}

impl World {
    /// An empty world; the label shows up in the cgroup's name.
    pub fn new(label: &str) -> Result<Self> {
        Ok(Self { cgroup: Cgroup::new(label)?, namespace: Namespace::new()? })
    }

    /// A client inside the cgroup and the namespace.
    pub fn client(&self) -> Result<Client> {
        Client::start(Some(&self.cgroup), Some(&self.namespace))
    }

    /// A TCP server that says `name` to whoever connects. Its address is added to the namespace if it is not there.
    pub fn tcp(&self, address: &str, name: &str) -> Result<Server> {
        Server::tcp(&self.namespace, self.local(address)?, name)
    }

    /// A UDP server that puts `name` before every datagram it sends back.
    pub fn udp(&self, address: &str, name: &str) -> Result<Server> {
        Server::udp(&self.namespace, self.local(address)?, name)
    }

    /// An HTTP server whose answers carry `name`.
    pub fn http(&self, address: &str, name: &str) -> Result<Server> {
        Server::http(&self.namespace, self.local(address)?, name)
    }

    /// An agent that steers the cgroup, not yet started.
    pub fn agent(&self) -> Result<Agent> {
        Agent::new(self.cgroup.path())
    }

    /// A started agent that steers the cgroup as the documents in `file` (or directory) say, however much they take away.
    pub fn agent_with(&self, file: &Path) -> Result<Agent> {
        let mut agent = self.agent()?.apply(file).environment("SLUICE_SHRINK_LIMIT", "100");
        agent.start()?;
        Ok(agent)
    }

    fn local(&self, address: &str) -> Result<SocketAddr> {
        let address: SocketAddr = address.parse()?;
        let loopback = address.ip().is_loopback() || address.ip().is_unspecified();
        // All of 127.0.0.0/8 is local already. Several servers may share one address on different ports.
        if !loopback && !self.has(address)? {
            self.namespace.address(address.ip())?;
        }
        Ok(address)
    }

    /// Whether a socket can be bound to the address, that is, whether the namespace has it.
    fn has(&self, address: SocketAddr) -> Result<bool> {
        Ok(self.namespace.run(|| std::net::UdpSocket::bind((address.ip(), 0)).is_ok()))
    }
}
