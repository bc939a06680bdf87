//! The whole desired state as one immutable value: cloning is cheap, readers never wait.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;

use super::{
    Backend, BackendId, Frontend, Name, Node, NodeId, Service, ServiceId, Target,
    capacity::Capacity,
    ids::{IdTable, Pool},
    service::Protocol,
};

/// What fits. Each limit is also the size of a kernel table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    /// Node 0 is the node of backends that name none, so one less can be named.
    pub nodes: u32,
    pub frontends: u32,
}

/// Services, backends and nodes with their ids. Made by [`State::apply`] from another, or restored from a store.
/// Ids of what is removed stay taken until [`State::release`]: the kernel may still count connections under them.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) limits: Limits,
    pub(super) revision: u64,
    pub(super) services: IdTable<Arc<Service>>,
    pub(super) services_by_name: OrdMap<Name, ServiceId>,
    pub(super) nodes: IdTable<Arc<Node>>,
    pub(super) nodes_by_name: OrdMap<Name, NodeId>,
    /// The service of each backend.
    pub(super) owners: IdTable<ServiceId>,
    pub(super) frontends: OrdMap<FrontendKey, ServiceId>,
    /// The TCP address of the agent's own API, which must not become a frontend.
    pub(super) api: Option<SocketAddr>,
    /// How many backends have each address, once per protocol of their service. Under a hash of the address: a third
    /// of the memory, and what is found is looked at again anyway, to say whose it is.
    pub(super) addresses: OrdMap<u32, u32>,
    /// Share that a service has on a node, without backends that are zeroed themselves or not healthy; an entry for
    /// every pair.
    pub(super) shares: OrdMap<(NodeId, ServiceId), u64>,
    pub(super) capacity: IdTable<Capacity>,
    /// Services that the zero of some node might leave with less than they must keep.
    pub(super) tight: OrdSet<ServiceId>,
    /// Node whose zero came or went and which `capacity` does not show yet: see [`State::settle`].
    pub(super) unsettled: Option<NodeId>,
    pub(super) expiries: OrdSet<(Timestamp, Holder)>,
    pub(super) service_ids: Pool,
    pub(super) backend_ids: Pool,
    pub(super) node_ids: Pool,
}

/// What holds a zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Holder {
    Node(NodeId),
    Backend(BackendId),
}

/// An address and protocol as a key: 20 bytes instead of the 36 of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FrontendKey {
    /// IPv4 as a mapped address.
    ip: [u8; 16],
    port: u16,
    protocol: Protocol,
}

impl FrontendKey {
    pub fn new(address: SocketAddr, protocol: Protocol) -> Self {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        Self { ip: ip.octets(), port: address.port(), protocol }
    }

    /// Key in [`State::addresses`]. Never saved.
    pub fn hash(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        Hash::hash(self, &mut hasher);
        let hash = hasher.finish();
        (hash ^ (hash >> 32)) as u32
    }
}

impl From<&Frontend> for FrontendKey {
    fn from(frontend: &Frontend) -> Self {
        Self::new(frontend.address, frontend.protocol)
    }
}

impl State {
    /// Nothing yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            revision: 0,
            services: IdTable::new(),
            services_by_name: OrdMap::new(),
            nodes: IdTable::new(),
            nodes_by_name: OrdMap::new(),
            owners: IdTable::new(),
            frontends: OrdMap::new(),
            api: None,
            addresses: OrdMap::new(),
            shares: OrdMap::new(),
            capacity: IdTable::new(),
            tight: OrdSet::new(),
            unsettled: None,
            expiries: OrdSet::new(),
            service_ids: Pool::new(0, limits.services),
            backend_ids: Pool::new(0, limits.backends),
            node_ids: Pool::new(1, limits.nodes),
        }
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The same, which lets no change make a frontend of the agent's own API.
    pub fn with_api(self, api: Option<SocketAddr>) -> Self {
        Self { api, ..self }
    }

    /// Grows with every change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    pub fn service(&self, name: &str) -> Option<&Arc<Service>> {
        self.service_by_id(*self.services_by_name.get(name)?)
    }

    pub fn service_by_id(&self, id: ServiceId) -> Option<&Arc<Service>> {
        self.services.get(id.0)
    }

    /// In the order of names.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_name.values().filter_map(|id| self.service_by_id(*id))
    }

    pub fn service_count(&self) -> usize {
        self.services_by_name.len()
    }

    /// The backend with this id and its service.
    pub fn backend(&self, id: BackendId) -> Option<(&Arc<Service>, &Backend)> {
        let service = self.service_by_id(*self.owners.get(id.0)?)?;
        Some((service, service.backends.iter().find(|backend| backend.id == id)?))
    }

    pub fn backend_count(&self) -> usize {
        self.services.iter().map(|(_, service)| service.backends.len()).sum()
    }

    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.node_by_id(*self.nodes_by_name.get(name)?)
    }

    /// `None` for `NodeId(0)`.
    pub fn node_by_id(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.nodes.get(id.0)
    }

    /// In the order of names.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes_by_name.values().filter_map(|id| self.node_by_id(*id))
    }

    /// Services that have a backend on this node, in the order of ids.
    pub fn node_services(&self, node: NodeId) -> impl Iterator<Item = &Arc<Service>> {
        self.node_shares(node).filter_map(|(service, _)| self.service_by_id(service))
    }

    /// Backends on this node, with their services.
    pub fn node_backends(&self, node: NodeId) -> impl Iterator<Item = (&Arc<Service>, &Backend)> {
        self.node_services(node).flat_map(move |service| {
            let backends = service.backends.iter().filter(move |backend| backend.node == node);
            backends.map(move |backend| (service, backend))
        })
    }

    /// The service that has this frontend.
    pub fn frontend(&self, frontend: &Frontend) -> Option<ServiceId> {
        self.frontends.get(&FrontendKey::from(frontend)).copied()
    }

    pub fn frontend_count(&self) -> usize {
        self.frontends.len()
    }

    /// Whether new connections may go to `backend` as far as its own zero, its node's zero and its weight say.
    /// (Its health may keep it out, and its group's weight may be 0 all the same.)
    pub fn is_open(&self, backend: &Backend) -> bool {
        backend.weight > 0 && backend.zero.is_none() && !self.is_node_zero(backend.node)
    }

    /// The earliest time at which a zero ends.
    pub fn next_expiry(&self) -> Option<Timestamp> {
        self.expiries.get_min().map(|(at, _)| *at)
    }

    /// What is to be restored because its zero ended at `now` or before.
    pub fn expired(&self, now: Timestamp) -> Vec<Target> {
        let due = self.expiries.iter().take_while(|(at, _)| *at <= now);
        due.filter_map(|(_, holder)| self.target(*holder)).collect()
    }

    /// Takes ids that the kernel still holds, at start. Those in use here are taken already.
    pub fn reserve(&mut self, backends: &[BackendId], services: &[ServiceId], nodes: &[NodeId]) {
        backends.iter().for_each(|id| self.backend_ids.reserve(id.0));
        services.iter().for_each(|id| self.service_ids.reserve(id.0));
        nodes.iter().filter(|id| id.0 != 0).for_each(|id| self.node_ids.reserve(id.0));
    }

    /// Gives back ids of what was removed, once nothing carries them any more. Those in use are left alone.
    pub fn release(&mut self, backends: &[BackendId], services: &[ServiceId], nodes: &[NodeId]) {
        for id in backends.iter().filter(|id| self.owners.get(id.0).is_none()) {
            self.backend_ids.release(id.0);
        }
        for id in services.iter().filter(|id| self.services.get(id.0).is_none()) {
            self.service_ids.release(id.0);
        }
        for id in nodes.iter().filter(|id| id.0 != 0 && self.nodes.get(id.0).is_none()) {
            self.node_ids.release(id.0);
        }
    }

    pub(super) fn is_node_zero(&self, node: NodeId) -> bool {
        self.nodes.get(node.0).is_some_and(|node| node.zero.is_some())
    }

    /// Whether the agent's own API listens there.
    pub(super) fn is_api(&self, frontend: &Frontend) -> bool {
        self.api.is_some_and(|api| {
            let Frontend { address, protocol } = frontend;
            let is_one = api.ip() == address.ip() || (api.ip().is_unspecified() && address.ip().is_loopback());
            *protocol == Protocol::Tcp && api.port() == address.port() && is_one
        })
    }

    /// Services on `node` with the share of their capacity that they have there.
    pub(super) fn node_shares(&self, node: NodeId) -> impl Iterator<Item = (ServiceId, u64)> {
        let range = (node, ServiceId(0))..=(node, ServiceId(u32::MAX));
        self.shares.range(range).map(|((_, service), weight)| (*service, *weight))
    }

    fn target(&self, holder: Holder) -> Option<Target> {
        match holder {
            Holder::Node(node) => self.node_by_id(node).map(|node| Target::Node(node.name.clone())),
            Holder::Backend(id) => self.backend(id).map(|(service, backend)| Target::Backend {
                service: service.name.clone(),
                backend: backend.name.clone(),
            }),
        }
    }
}
