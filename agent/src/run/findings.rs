//! What probes and rules say of backends, taken in: first the kernel, then the store, then the tables at leisure.

use std::time::Instant;

use super::steering::Steering;
use crate::{
    handle::Options,
    model::{Change, Finding},
    plan::Machine,
};

impl<M: Machine> Steering<M> {
    pub(super) fn take_in(&mut self, findings: Vec<Finding>) {
        let options = Options { dry_run: false, received: Instant::now() };
        if let Err(error) = self.change(&[Change::Find { findings }], options) {
            tracing::warn!(%error, "findings are lost");
        }
    }
}
