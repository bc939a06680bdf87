//! What every candidate is configured with: services, and the nodes that their backends are on.

use std::net::{Ipv4Addr, SocketAddr};

/// Hosts that backends are on.
pub const NODES: usize = 3;

/// A connection is accepted, answered with the node's digit, and closed.
pub const PLAIN: u16 = 8080;
/// HTTP with keep-alive, by nginx.
pub const WEB: u16 = 8081;
/// HTTP with keep-alive, each answer after [`super::node::WORK`].
pub const SLOW: u16 = 8082;
/// iperf3.
pub const STREAM: u16 = 5201;

/// One address that clients know, and what is behind it.
#[derive(Clone, Debug)]
pub struct Service {
    /// From 0; makes the addresses.
    pub number: u32,
    /// Of the frontend and of the backends: IPVS by direct routing cannot change it.
    pub port: u16,
    /// By node; a node without an entry has no backend.
    pub weights: Vec<(usize, u32)>,
    /// Whether a client keeps its backend.
    pub affinity: bool,
}

impl Service {
    /// A service with backends of equal weight on every node.
    pub fn even(number: u32, port: u16) -> Self {
        Self { number, port, weights: (0..NODES).map(|node| (node, 1)).collect(), affinity: false }
    }

    /// A service with these weights, in the order of the nodes.
    pub fn weighted(number: u32, port: u16, weights: &[u32]) -> Self {
        Self { weights: weights.iter().copied().enumerate().collect(), ..Self::even(number, port) }
    }

    /// Where clients connect to.
    pub fn frontend(&self) -> SocketAddr {
        SocketAddr::from((self.address(96), self.port))
    }

    /// Where the backend on a node listens.
    pub fn backend(&self, node: usize) -> SocketAddr {
        SocketAddr::from((self.address(second(node)), self.port))
    }

    /// The weights without the nodes that are at zero.
    pub fn open(&self, zeroed: &[usize]) -> Vec<(usize, u32)> {
        self.weights.iter().copied().filter(|(node, _)| !zeroed.contains(node)).collect()
    }

    fn address(&self, second: u8) -> Ipv4Addr {
        let [_, _, high, low] = self.number.to_be_bytes();
        Ipv4Addr::new(10, second, high, low)
    }
}

/// The second byte of the addresses on a node: 10.10.0.0/16 is on node 0.
pub fn second(node: usize) -> u8 {
    10 + node as u8
}

/// This many services with a backend on every node.
pub fn many(services: u32) -> Vec<Service> {
    (0..services).map(|number| Service::even(number, PLAIN)).collect()
}
