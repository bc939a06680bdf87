//! Datagram flows that are in use, counted by their backends.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use sluice_common::{
    flows::{Flow, FlowKey, goes_on},
    registry::FLOWS,
    tables::CLOSED_REMOVED,
};

use super::{memory::MappedTables, object::Object, sys::Hash};
use crate::{host::clock, model::BackendId};

/// FLOWS, as the programs keep it.
pub struct FlowTable {
    flows: Hash<FlowKey, Flow>,
    tables: Arc<MappedTables>,
}

impl FlowTable {
    pub(super) fn open(object: &Object, tables: Arc<MappedTables>) -> Result<Self> {
        Ok(Self { flows: object.hash(&FLOWS)?, tables })
    }

    /// Backends with flows whose next datagram goes there, and how many: as the programs would decide now. It takes time
    /// in proportion to all flows: some milliseconds for a full table.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn in_use(&self) -> Result<BTreeMap<BackendId, u64>> {
        let now = clock::monotonic_ns();
        let all: HashMap<FlowKey, Flow> = self.flows.batches().context("reading FLOWS")?.into_iter().collect();
        let mut counts = BTreeMap::new();
        for (key, flow) in all.iter().filter(|(key, _)| key.answer == 0) {
            let answers = all.get(&FlowKey::from_backend(key.socket, &flow.address, flow.port));
            let Some(backend) = self.tables.backend(flow.backend_id) else { continue };
            let closed = backend.closed | self.tables.node_closed(backend.node);
            if goes_on(flow, answers, &backend, closed, now) {
                *counts.entry(BackendId(flow.backend_id)).or_default() += 1;
            }
        }
        Ok(counts)
    }

    /// Removes the flows of backends that take nothing any more.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub fn forget(&self, backends: &[BackendId]) -> Result<()> {
        let backends: HashSet<u32> = backends.iter().map(|id| id.0).collect();
        // An id may be another backend's already.
        let is_closed = |id: u32| self.tables.backend(id).is_some_and(|backend| backend.closed & CLOSED_REMOVED != 0);
        for (key, flow) in self.flows.batches().context("reading FLOWS")? {
            if !backends.contains(&flow.backend_id) || !is_closed(flow.backend_id) {
                continue;
            }
            match self.flows.remove(&key) {
                // It was evicted.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result.context("writing FLOWS")?,
            }
        }
        Ok(())
    }
}
