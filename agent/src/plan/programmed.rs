//! What the kernel acknowledged, and what has to be written to bring it to what is desired.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use sluice_common::{
    drain::Draining,
    tables::{
        self, CLOSED_EJECTED, CLOSED_REMOVED, CLOSED_UNREADY, CLOSED_WEIGHT, CLOSED_ZERO, Endpoint, TCP, Table, UDP,
    },
};

use super::{
    Entries, MapOp,
    regions::{Region, Regions},
    service::{self, Built},
};
use crate::{
    control::warmup::Ramps,
    model::{Backend, BackendId, Frontend, Node, NodeId, Service, ServiceId, State, service::Protocol},
};

/// The tables as the kernel holds them.
#[derive(Clone, Debug)]
pub struct Programmed {
    /// Closed nodes, with the reasons.
    nodes: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, tables::Backend>,
    services: BTreeMap<u32, Held>,
    frontends: HashMap<Endpoint, u32>,
    regions: Regions,
    /// Backends whose connections may be closed.
    draining: BTreeMap<u32, Draining>,
    /// Backends whose turn times are measured.
    measured: BTreeSet<u32>,
    /// Regions that a flip has left and that programs may still read, by their base.
    left: BTreeMap<u32, Region>,
}

/// One service in the kernel.
#[derive(Clone, Debug)]
struct Held {
    table: Table,
    /// Of the table that is in force; see [`service::fingerprint`].
    fingerprint: u64,
    frontends: BTreeSet<Endpoint>,
}

/// What nothing refers to any more, once every program that may have read it has ended.
#[derive(Clone, Debug, Default)]
pub struct Retired {
    /// Whether the backends had their time to end what was on its way.
    pub waited: bool,
    pub regions: Vec<Region>,
    pub services: Vec<ServiceId>,
    pub backends: Vec<BackendId>,
    pub nodes: Vec<NodeId>,
}

impl Retired {
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty() && self.services.is_empty() && self.backends.is_empty() && self.nodes.is_empty()
    }
}

impl Retired {
    pub fn extend(&mut self, other: Self) {
        self.regions.extend(other.regions);
        self.services.extend(other.services);
        self.backends.extend(other.backends);
        self.nodes.extend(other.nodes);
    }
}

impl Programmed {
    pub fn new(slots: u32) -> Self {
        Self {
            nodes: BTreeMap::new(),
            backends: BTreeMap::new(),
            services: BTreeMap::new(),
            frontends: HashMap::new(),
            regions: Regions::new(slots),
            draining: BTreeMap::new(),
            measured: BTreeSet::new(),
            left: BTreeMap::new(),
        }
    }

    /// From what the tables hold. What `self` has left comes back as it would have.
    pub fn adopt(&self, slots: u32, entries: Entries) -> Self {
        let Entries { frontends, services, backends, nodes } = entries;
        let mut adopted = Self::new(slots);
        adopted.nodes = nodes.into_iter().collect();
        adopted.backends = backends.into_iter().collect();
        for (id, table, fingerprint) in services {
            adopted.regions.claim(region(table));
            adopted.services.insert(id, Held { table, fingerprint, frontends: BTreeSet::new() });
        }
        // Not among the entries: it is this agent's own.
        adopted.draining = self.draining.clone();
        adopted.measured = self.measured.clone();
        adopted.left = self.left.clone();
        adopted.left.retain(|_, left| adopted.regions.claim(*left));
        for (frontend, id) in frontends {
            adopted.frontends.insert(frontend, id);
            if let Some(held) = adopted.services.get_mut(&id) {
                held.frontends.insert(frontend);
            }
        }
        adopted
    }

    /// Takes note of a write that the kernel acknowledged. Returns the region that a flip has left.
    pub fn acknowledge(&mut self, op: &MapOp) -> Option<Region> {
        match op {
            MapOp::SetNode { node, closed } => {
                if *closed == 0 {
                    self.nodes.remove(node);
                } else {
                    self.nodes.insert(*node, *closed);
                }
            }
            MapOp::PutBackend { backend, value } => {
                self.backends.insert(*backend, *value);
            }
            MapOp::CloseBackend { backend, closed } => {
                if let Some(held) = self.backends.get_mut(backend) {
                    held.closed = *closed;
                }
            }
            MapOp::ForgetBackend { backend } => {
                self.backends.remove(backend);
                self.measured.remove(backend);
            }
            MapOp::BeginService { service, .. } => {
                let held = Held { table: Table(0), fingerprint: 0, frontends: BTreeSet::new() };
                self.services.insert(*service, held);
            }
            MapOp::Flip { service, table } => {
                let held = self.services.get_mut(service)?;
                let old = region(std::mem::replace(&mut held.table, *table));
                return self.leave(old);
            }
            MapOp::ForgetService { service } => {
                let held = self.services.remove(service)?;
                return self.leave(region(held.table));
            }
            MapOp::PutFrontend { frontend, service } => {
                if let Some(before) = self.frontends.insert(*frontend, *service)
                    && let Some(held) = self.services.get_mut(&before)
                {
                    held.frontends.remove(frontend);
                }
                if let Some(held) = self.services.get_mut(service) {
                    held.frontends.insert(*frontend);
                }
            }
            MapOp::RemoveFrontend { frontend } => {
                if let Some(before) = self.frontends.remove(frontend)
                    && let Some(held) = self.services.get_mut(&before)
                {
                    held.frontends.remove(frontend);
                }
            }
            MapOp::SetDraining { backend, draining: Some(draining) } => {
                self.draining.insert(*backend, *draining);
            }
            MapOp::SetDraining { backend, draining: None } => {
                self.draining.remove(backend);
            }
            MapOp::SetMeasured { backend, measured: true } => {
                self.measured.insert(*backend);
            }
            MapOp::SetMeasured { backend, measured: false } => {
                self.measured.remove(backend);
            }
            MapOp::WriteTable { .. } | MapOp::AddLost { .. } => {}
        }
        None
    }

    fn leave(&mut self, region: Region) -> Option<Region> {
        if region.length == 0 {
            return None;
        }
        self.left.insert(region.base, region);
        Some(region)
    }

    /// Gives back what [`Retired`] named, unless that has been done.
    pub fn give_back(&mut self, region: Region) {
        if self.left.remove(&region.base).is_some() {
            self.regions.give_back(region);
        }
    }

    /// A backend that the kernel holds with another address than `state` does: its tables are not those of this state.
    pub fn stranger<'a>(&self, state: &'a State) -> Option<(&'a Service, &'a Backend)> {
        let mut backends = state.services().flat_map(|service| service.backends.iter().map(move |b| (&**service, b)));
        backends.find(|(_, backend)| {
            let wanted = Endpoint::new(backend.address, 0);
            let held = self.backends.get(&backend.id.0);
            held.is_some_and(|held| (held.address, held.port) != (wanted.address, wanted.port))
        })
    }

    /// Writes that bring one node to what is desired: one, or none.
    pub fn plan_node(&self, node: &Node) -> Option<MapOp> {
        let closed = if node.zero.is_some() { CLOSED_ZERO } else { 0 };
        let held = self.nodes.get(&node.id.0).copied().unwrap_or(0);
        (held != closed).then_some(MapOp::SetNode { node: node.id.0, closed })
    }

    /// Write that closes one backend if that is desired: one, or none. It needs no table.
    ///
    /// `panic`: whether the service is in panic, see [`State::panics`].
    pub fn plan_closing(&self, service: &Service, backend: &Backend, panic: bool) -> Option<MapOp> {
        // First, because hardly any is: a zero waits for the look at all of its service.
        let closed = Some(closed(service, backend, panic)).filter(|closed| *closed != 0)?;
        let held = self.backends.get(&backend.id.0)?;
        (held.closed != closed).then_some(MapOp::CloseBackend { backend: backend.id.0, closed })
    }

    /// Write that lets a backend's connections be closed, or no longer: one, or none.
    pub fn plan_leaving(&self, state: &State, service: &Service, backend: &Backend) -> Option<MapOp> {
        let draining = state.drain(backend).map(|drain| drain.draining(service));
        let held = self.draining.get(&backend.id.0).copied();
        (held != draining).then_some(MapOp::SetDraining { backend: backend.id.0, draining })
    }

    /// The same for a backend that left the configuration.
    pub fn plan_staying(&self, backend: BackendId) -> Option<MapOp> {
        self.draining.get(&backend.0).map(|_| MapOp::SetDraining { backend: backend.0, draining: None })
    }

    /// Writes that bring one service to what is desired, and its table. `seed` starts a new service's sequence.
    ///
    /// # Errors
    /// When SLOTS has no room.
    pub fn plan_service(
        &mut self,
        state: &State,
        ramps: &Ramps,
        service: &Service,
        seed: u64,
    ) -> Result<(Vec<MapOp>, Built)> {
        let built = service::build(state, ramps, service);
        let panic = state.panics(service);
        let mut ops = Vec::new();
        let id = service.id.0;
        let held = self.services.get(&id);
        if held.is_none() {
            ops.push(MapOp::BeginService { service: id, sequence: seed });
        }
        // What closes waits for the table without it: until then it may be all there is. What must close at once was
        // closed before.
        let mut closing = Vec::new();
        for backend in &service.backends {
            let value = entry(service, backend, panic);
            let held = self.backends.get(&backend.id.0);
            if held != Some(&value) {
                let is_closing = held.is_some_and(|held| held.closed == 0) && value.closed != 0;
                let ops = if is_closing { &mut closing } else { &mut ops };
                ops.push(MapOp::PutBackend { backend: backend.id.0, value });
            }
            let measured = service.health_policy.turn_time;
            if self.measured.contains(&backend.id.0) != measured {
                ops.push(MapOp::SetMeasured { backend: backend.id.0, measured });
            }
        }
        let fingerprint = service::fingerprint(built.word(service, 0), &built.entries);
        if held.is_none_or(|held| held.fingerprint != fingerprint || !held.table.present()) {
            let region = self.regions.take(built.entries.len() as u32).context(
                "SLOTS is full: run the agent with a larger --max-slots (after `sluice uninstall --keep-state`)",
            )?;
            if !built.entries.is_empty() {
                ops.push(MapOp::WriteTable { base: region.base, entries: built.entries.clone() });
            }
            ops.push(MapOp::Flip { service: id, table: built.word(service, region.base) });
        }
        ops.extend(closing);
        let wanted: BTreeSet<Endpoint> = service.frontends.iter().map(endpoint).collect();
        for frontend in &wanted {
            if self.frontends.get(frontend) != Some(&id) {
                ops.push(MapOp::PutFrontend { frontend: *frontend, service: id });
            }
        }
        // A frontend that went to another service is that one's to write.
        for frontend in held.into_iter().flat_map(|held| held.frontends.difference(&wanted)) {
            if frontend_owner(state, frontend).is_none() {
                ops.push(MapOp::RemoveFrontend { frontend: *frontend });
            }
        }
        Ok((ops, built))
    }

    /// Takes note that the service's table is what `fingerprint` says; call it when its flip is acknowledged.
    pub fn settle(&mut self, service: &Service, built: &Built) {
        if let Some(held) = self.services.get_mut(&service.id.0) {
            held.fingerprint = service::fingerprint(built.word(service, 0), &built.entries);
        }
    }

    /// Writes that end a service: its frontends go, so that nothing leads to it.
    pub fn plan_removal(&self, state: &State, service: ServiceId) -> Vec<MapOp> {
        let held = self.services.get(&service.0);
        held.into_iter()
            .flat_map(|held| &held.frontends)
            .filter(|frontend| frontend_owner(state, frontend).is_none())
            .map(|frontend| MapOp::RemoveFrontend { frontend: *frontend })
            .collect()
    }

    /// Write that keeps flows and stale tables from a backend that left the configuration.
    pub fn plan_backend_removal(&self, backend: BackendId) -> Option<MapOp> {
        let held = self.backends.get(&backend.0)?;
        Some(MapOp::CloseBackend { backend: backend.0, closed: held.closed | CLOSED_REMOVED })
    }

    /// What the kernel holds and the desired state does not know: frontends to remove, and then what they led to.
    pub fn plan_unknown(&self, state: &State) -> (Vec<MapOp>, Retired) {
        let mut ops = Vec::new();
        for frontend in self.frontends.keys() {
            if frontend_owner(state, frontend).is_none() {
                ops.push(MapOp::RemoveFrontend { frontend: *frontend });
            }
        }
        let mut retired = Retired::default();
        for id in self.services.keys().map(|id| ServiceId(*id)) {
            if state.service_by_id(id).is_none() {
                retired.services.push(id);
            }
        }
        let known: BTreeSet<u32> =
            state.services().flat_map(|service| service.backends.iter().map(|backend| backend.id.0)).collect();
        for (id, held) in &self.backends {
            if !known.contains(id) {
                ops.push(MapOp::CloseBackend { backend: *id, closed: held.closed | CLOSED_REMOVED });
                retired.backends.push(BackendId(*id));
            }
        }
        let gone = self.draining.keys().filter(|id| !known.contains(id));
        ops.extend(gone.map(|id| MapOp::SetDraining { backend: *id, draining: None }));
        for node in self.nodes.keys().map(|id| NodeId(*id)) {
            if state.node_by_id(node).is_none() {
                ops.push(MapOp::SetNode { node: node.0, closed: 0 });
            }
        }
        (ops, retired)
    }

    /// Ids that the kernel holds: not to be given to anything new.
    pub fn ids(&self) -> Retired {
        Retired {
            services: self.services.keys().map(|id| ServiceId(*id)).collect(),
            backends: self.backends.keys().map(|id| BackendId(*id)).collect(),
            nodes: self.nodes.keys().map(|id| NodeId(*id)).collect(),
            ..Retired::default()
        }
    }

    /// Nodes and backends that the kernel holds zeroed.
    pub fn zeroed(&self) -> (Vec<NodeId>, Vec<(BackendId, tables::Backend)>) {
        let zeroed = |closed: u32| closed & CLOSED_ZERO != 0 && closed & CLOSED_REMOVED == 0;
        (
            self.nodes.iter().filter(|(_, closed)| zeroed(**closed)).map(|(id, _)| NodeId(*id)).collect(),
            self.backends.iter().filter(|(_, b)| zeroed(b.closed)).map(|(id, b)| (BackendId(*id), *b)).collect(),
        )
    }
}

/// The kernel's form of a frontend.
pub fn endpoint(frontend: &Frontend) -> Endpoint {
    let protocol = match frontend.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    Endpoint::new(frontend.address, protocol)
}

fn frontend_owner(state: &State, endpoint: &Endpoint) -> Option<ServiceId> {
    let protocol = if endpoint.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
    state.frontend(&Frontend { address: endpoint.socket_addr(), protocol })
}

fn entry(service: &Service, backend: &Backend, panic: bool) -> tables::Backend {
    let endpoint = Endpoint::new(backend.address, 0);
    tables::Backend {
        address: endpoint.address,
        port: endpoint.port,
        padding: 0,
        node: backend.node.0,
        closed: closed(service, backend, panic),
        padding2: 0,
    }
}

/// Weight 0 closes too, so that flows and affinity end with it as they do with a zero. In a panic nobody is closed for
/// what he cannot help.
fn closed(service: &Service, backend: &Backend, panic: bool) -> u32 {
    let group = service.groups.get(backend.group as usize).map_or(0, |group| group.weight);
    let zero = if backend.zero.is_some() { CLOSED_ZERO } else { 0 };
    let weight = if backend.weight == 0 || group == 0 { CLOSED_WEIGHT } else { 0 };
    let health = match &backend.health {
        Some(health) if !backend.is_fit(panic) => {
            let unready = if health.is_ready() { 0 } else { CLOSED_UNREADY };
            let ejected = if health.is_ejected() { CLOSED_EJECTED } else { 0 };
            unready | ejected
        }
        Some(_) | None => 0,
    };
    zero | weight | health
}

fn region(table: Table) -> Region {
    Region::of(table.base(), table.length() + table.distinct())
}
