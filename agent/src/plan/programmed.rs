//! What the kernel acknowledged.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sluice_common::{
    drain::Draining,
    tables::{self, CLOSED_REMOVED, CLOSED_ZERO, Endpoint, TableWord},
};

use super::{
    Entries, MapOp,
    regions::{Region, Regions},
};
use crate::model::{BackendId, NodeId, ServiceId};

/// The tables as the kernel holds them.
#[derive(Clone, Debug)]
pub struct Programmed {
    /// Closed nodes, with the reasons.
    pub(super) nodes: BTreeMap<u32, u32>,
    pub(super) backends: BTreeMap<u32, tables::BackendEntry>,
    pub(super) services: BTreeMap<u32, ServiceInTables>,
    pub(super) frontends: HashMap<Endpoint, u32>,
    pub(super) regions: Regions,
    /// Backends whose connections may be closed.
    pub(super) draining: BTreeMap<u32, Draining>,
    /// Backends whose turn times are measured.
    pub(super) measured: BTreeSet<u32>,
    /// Regions that a flip has left and that programs may still read, by their base.
    left: BTreeMap<u32, Region>,
}

/// One service in the kernel.
#[derive(Clone, Debug)]
pub(super) struct ServiceInTables {
    pub table: TableWord,
    /// Of the table that is in force; see [`service::fingerprint`].
    pub fingerprint: u64,
    pub frontends: BTreeSet<Endpoint>,
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
            adopted.services.insert(id, ServiceInTables { table, fingerprint, frontends: BTreeSet::new() });
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
                let held = ServiceInTables { table: TableWord(0), fingerprint: 0, frontends: BTreeSet::new() };
                self.services.insert(*service, held);
            }
            MapOp::Flip { service, table, fingerprint } => {
                let held = self.services.get_mut(service)?;
                held.fingerprint = *fingerprint;
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
            MapOp::WriteTable { base, entries } => {
                // Free until now: a plan of which this was not carried out leaves nothing taken.
                self.regions.claim(Region::of(*base, entries.len() as u32));
            }
            MapOp::AddLost { .. } => {}
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
    pub fn zeroed(&self) -> (Vec<NodeId>, Vec<(BackendId, tables::BackendEntry)>) {
        let zeroed = |closed: u32| closed & CLOSED_ZERO != 0 && closed & CLOSED_REMOVED == 0;
        (
            self.nodes.iter().filter(|(_, closed)| zeroed(**closed)).map(|(id, _)| NodeId(*id)).collect(),
            self.backends.iter().filter(|(_, b)| zeroed(b.closed)).map(|(id, b)| (BackendId(*id), *b)).collect(),
        )
    }
}

fn region(table: TableWord) -> Region {
    Region::of(table.base(), table.length() + table.distinct())
}
