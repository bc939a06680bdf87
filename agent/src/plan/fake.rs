//! Tables in memory, with a fault at a chosen write: what the tests of the engine steer with.
#![allow(clippy::disallowed_methods)]

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use sluice_common::{
    drain::Draining,
    pick,
    tables::{BackendEntry, Counters, Endpoint, TableWord},
    verdict::Program,
};

use super::{DataPlane, Entries, MapOp, service::fingerprint};
use crate::{host::clock, kernel::gauges::UNUSED, model::BackendId};

#[derive(Clone, Debug, Default)]
pub struct Fake {
    pub frontends: BTreeMap<Endpoint, u32>,
    pub services: BTreeMap<u32, TableWord>,
    pub slots: BTreeMap<u32, u32>,
    pub backends: BTreeMap<u32, BackendEntry>,
    pub nodes: BTreeMap<u32, u32>,
    pub counters: BTreeMap<u32, Counters>,
    pub draining: BTreeMap<u32, Draining>,
    /// Writes done so far.
    pub done: usize,
    /// This write, counted from 0, fails once.
    pub fail_at: Option<usize>,
    /// Writes that fail as long as this says so.
    pub refuses: Option<fn(&MapOp) -> bool>,
    pub counter_table: u32,
    /// That of the store, as it was last noted.
    pub revision: u64,
    /// Programs that do not run.
    pub unattached: Vec<Program>,
    /// Backends whose turn times are measured.
    pub measured: BTreeSet<u32>,
    /// The tables after every write.
    pub history: Vec<Snapshot>,
    pub keep_history: bool,
}

/// What a program could see between two writes.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub op: MapOp,
    pub frontends: BTreeMap<Endpoint, u32>,
    services: BTreeMap<u32, TableWord>,
    slots: BTreeMap<u32, u32>,
    backends: BTreeMap<u32, BackendEntry>,
    nodes: BTreeMap<u32, u32>,
}

impl DataPlane for Fake {
    fn run(&mut self, op: &MapOp) -> anyhow::Result<()> {
        if self.fail_at == Some(self.done) {
            self.fail_at = None;
            bail!("the fault that the test asked for");
        }
        if self.refuses.is_some_and(|refuses| refuses(op)) {
            bail!("a write that the test has refused");
        }
        self.done += 1;
        match op {
            MapOp::SetNode { node, closed } => drop(self.nodes.insert(*node, *closed)),
            MapOp::PutBackend { backend, value } => drop(self.backends.insert(*backend, *value)),
            MapOp::CloseBackend { backend, closed } => {
                self.backends.entry(*backend).and_modify(|entry| entry.closed = *closed);
            }
            MapOp::ForgetBackend { backend } => {
                self.backends.remove(backend);
                self.counters.remove(backend);
            }
            MapOp::BeginService { service, .. } => drop(self.services.insert(*service, TableWord(0))),
            MapOp::WriteTable { base, entries } => self.slots.extend((*base..).zip(entries.iter().copied())),
            MapOp::Flip { service, table, .. } => drop(self.services.insert(*service, *table)),
            MapOp::ForgetService { service } => drop(self.services.remove(service)),
            MapOp::PutFrontend { frontend, service } => drop(self.frontends.insert(*frontend, *service)),
            MapOp::RemoveFrontend { frontend } => drop(self.frontends.remove(frontend)),
            MapOp::SetDraining { backend, draining: Some(draining) } => drop(self.draining.insert(*backend, *draining)),
            MapOp::SetDraining { backend, draining: None } => drop(self.draining.remove(backend)),
            MapOp::SetMeasured { backend, measured: true } => {
                self.measured.insert(*backend);
            }
            MapOp::SetMeasured { backend, measured: false } => {
                self.measured.remove(backend);
            }
            MapOp::AddLost { backend, established, .. } => {
                self.counters.entry(*backend).or_insert(UNUSED).lost += established;
            }
        }
        if self.keep_history {
            self.history.push(self.snapshot(op.clone()));
        }
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Entries> {
        Ok(Entries {
            frontends: self.frontends.iter().map(|(frontend, id)| (*frontend, *id)).collect(),
            services: self.services.iter().filter(|(_, t)| t.present()).map(|(id, t)| self.held(*id, *t)).collect(),
            backends: self.backends.iter().map(|(id, backend)| (*id, *backend)).collect(),
            nodes: self.nodes.iter().filter(|(_, closed)| **closed != 0).map(|(id, closed)| (*id, *closed)).collect(),
        })
    }

    fn slots(&self, table: TableWord) -> anyhow::Result<Vec<u32>> {
        Ok((table.base()..table.base() + table.length()).filter_map(|at| self.slots.get(&at).copied()).collect())
    }

    fn counters(&self, ids: &[BackendId]) -> anyhow::Result<Vec<Counters>> {
        Ok(ids.iter().map(|id| self.counters.get(&id.0).copied().unwrap_or(UNUSED)).collect())
    }

    fn counter_table(&self) -> u32 {
        self.counter_table
    }

    fn saved(&mut self, revision: u64) {
        self.revision = revision;
    }

    fn mark(&self) -> u64 {
        clock::monotonic_ns()
    }

    fn unattached(&self) -> Vec<Program> {
        self.unattached.clone()
    }
}

impl Fake {
    fn held(&self, id: u32, table: TableWord) -> (u32, TableWord, u64) {
        let end = table.base() + table.length() + table.distinct();
        let entries: Vec<u32> = (table.base()..end).filter_map(|at| self.slots.get(&at).copied()).collect();
        (id, table, fingerprint(table, &entries))
    }

    pub fn snapshot(&self, op: MapOp) -> Snapshot {
        Snapshot {
            op,
            frontends: self.frontends.clone(),
            services: self.services.clone(),
            slots: self.slots.clone(),
            backends: self.backends.clone(),
            nodes: self.nodes.clone(),
        }
    }

    /// The tables as they are.
    pub fn now(&self) -> Snapshot {
        self.snapshot(MapOp::SetNode { node: 0, closed: 0 })
    }
}

impl Snapshot {
    /// What the kernel's program would do with a call to `frontend`: `None` passes it, as it does for an address that
    /// is no frontend; `Some(None)` refuses; else the backend's address.
    pub fn connect(&self, frontend: &Endpoint, draw: u64) -> Option<Option<String>> {
        let service = self.frontends.get(frontend)?;
        let table = *self.services.get(service)?;
        assert!(table.present(), "a frontend leads to a service without a table after {}", self.op);
        let picked = pick::pick(self, table, draw);
        Some(picked.map(|(_, backend)| Endpoint::v6(backend.address, backend.port, 0).socket_addr().to_string()))
    }
}

impl pick::Tables for Snapshot {
    type Entry = BackendEntry;

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index).copied()
    }
    fn backend(&self, id: u32) -> Option<BackendEntry> {
        self.backends.get(&id).copied()
    }
    fn node_closed(&self, id: u32) -> u32 {
        self.nodes.get(&id).copied().unwrap_or(0)
    }
}
