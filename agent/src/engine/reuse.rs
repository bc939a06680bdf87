//! What nothing refers to any more is given out again: ids, and slots.

use std::collections::HashMap;

use anyhow::Result;

use super::{client::Lost, event_loop::Engine};
use crate::{
    kernel::gauges,
    model::BackendId,
    plan::{DataPlane, MapOp, Retired},
};

impl<M: DataPlane> Engine<M> {
    /// Gives back what no program can see any more. Backends wait a while longer, so that a connect() that was on its
    /// way has sent its SYN, and until their last connection has ended.
    pub(super) fn reuse(&mut self, retired: Retired) {
        self.reclaimer.came_back(&retired);
        let Retired { regions, services, backends, nodes, waited } = retired;
        regions.into_iter().for_each(|region| self.programmed.give_back(region));
        let services: Vec<_> = services.into_iter().filter(|id| self.state.service_by_id(*id).is_none()).collect();
        let backends: Vec<_> = backends.into_iter().filter(|id| self.state.backend(*id).is_none()).collect();
        // What cannot be given back now comes again with the backends that wait.
        let again =
            |services, backends, nodes| Retired { waited: true, services, backends, nodes, ..Retired::default() };
        let (used, free) = if waited {
            match self.split_by_use(&backends) {
                Ok(split) => split,
                Err(error) => {
                    self.reclaimer.retire(again(services, backends, nodes));
                    return self.failed(&error);
                }
            }
        } else {
            (backends, Vec::new())
        };
        let mut ops: Vec<_> = services.iter().map(|id| MapOp::ForgetService { service: id.0 }).collect();
        ops.extend(free.iter().map(|id| MapOp::ForgetBackend { backend: id.0 }));
        if let Err(error) = self.run_all(&ops) {
            self.reclaimer.retire(again(services, [used, free].concat(), nodes));
            return self.failed(&error);
        }
        self.state.release(&free, &services, &nodes);
        self.reclaimer.wait_for(used);
        // What found no room, or no id, may find it now.
        self.kernel_retry.hope();
        if self.reconciler.has_refused() && !self.documents_retry.is_pending() {
            self.retry_documents();
            self.publish();
        }
    }

    /// Backends that still have connections, and those that have none.
    fn split_by_use(&self, ids: &[BackendId]) -> Result<(Vec<BackendId>, Vec<BackendId>)> {
        let counters: HashMap<BackendId, bool> = ids
            .iter()
            .zip(self.machine.counters(ids)?)
            .map(|(id, counters)| (*id, gauges::open(&counters) != 0))
            .collect();
        Ok(ids.iter().partition(|id| counters.get(id).copied().unwrap_or(false)))
    }

    /// Adds connections whose end nobody saw, as a tally found them.
    pub(super) fn correct(&mut self, lost: &[Lost]) {
        let ops: Vec<_> = lost
            .iter()
            .map(|lost| MapOp::AddLost {
                backend: lost.backend.0,
                established: lost.established,
                connecting: lost.connecting,
            })
            .collect();
        if let Err(error) = self.run_all(&ops) {
            self.failed(&error);
        }
    }
}
