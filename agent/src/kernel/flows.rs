//! Datagram flows that are in use, counted by their backends.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use anyhow::{Context, Result};
use sluice_common::{
    flows::{Flow, FlowKey, goes_on},
    registry::FLOWS,
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
}
