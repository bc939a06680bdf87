//! What probes and outlier rules say of backends, taken in. However many backends it is about, it is one change, one
//! transaction, and one event for each service.

use std::time::Instant;

use super::{
    event_loop::Engine,
    requests::Next,
    transaction::{OnFailure, Proposal},
};
use crate::{
    model::{Change, HealthUpdate},
    plan::DataPlane,
};

impl<M: DataPlane> Engine<M> {
    /// Takes updates in, whatever the kernel and the disk say: a full disk keeps no dead backend open. What closes holds
    /// at once, what opens follows with its table, other tables at leisure.
    pub(super) fn update_health(&mut self, updates: Vec<HealthUpdate>) {
        let changes = [Change::UpdateHealth { updates }];
        let Next { state: next, touched, .. } = match self.next(&changes) {
            Ok(next) => next,
            Err(error) => return tracing::error!(%error, "health updates cannot be taken in"),
        };
        if touched.is_empty() {
            return;
        }
        let committed = self.commit(Proposal {
            next,
            touched,
            changes: &changes,
            marks: &[],
            records: Vec::new(),
            received: Instant::now(),
            on_failure: OnFailure::Hold,
        });
        if let Err(error) = committed {
            tracing::error!(%error, "health updates cannot be taken in");
        }
        self.publish();
    }
}
