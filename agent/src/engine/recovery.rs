//! After a fault of the kernel or the disk: what is not as it should be is tried again, after pauses that grow.

use super::event_loop::Engine;
use crate::{
    plan::{DataPlane, Scope},
    source::store::Batch,
    view::{events::EventKind, published::AgentReadiness},
};

impl<M: DataPlane> Engine<M> {
    /// After a failure: the kernel is brought to the desired state from what it really holds, and the store is given what
    /// it misses.
    pub(super) fn recover(&mut self) {
        if self.kernel_retry.is_pending() {
            self.bring_back();
        }
        if self.store_retry.is_pending() {
            self.store_retry.begins();
            let batch = Batch { extras: &self.unsaved, ..Batch::default() };
            match self.store.commit_batch(&self.state, batch) {
                Ok(()) => {
                    self.store_retry.succeeded();
                    self.unsaved.clear();
                }
                Err(error) => self.failed_to_save(&error),
            }
        }
        self.publish();
    }

    /// Brings the kernel to the desired state, now or later.
    pub(super) fn bring_back(&mut self) {
        self.kernel_retry.begins();
        match self.reconcile() {
            Ok(()) => {
                self.kernel_retry.succeeded();
                self.readiness = AgentReadiness::Ready;
            }
            Err(error) => self.failed(&error),
        }
    }

    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        tracing::error!("the tables could not be written: {error:#}");
        self.instruments.kernel_failed();
        let why = AgentReadiness::NotReady(format!("{error:#}"));
        // One that lasts is told once.
        if self.readiness != why {
            self.note(EventKind::KernelFailed, None, format!("{error:#}; it is tried again"));
        }
        self.readiness = why;
        self.kernel_retry.failed();
    }

    /// Notes that the store misses something that holds all the same: it is given to the store again after a while.
    pub(super) fn failed_to_save(&mut self, error: &anyhow::Error) {
        tracing::error!("what holds is not saved yet, and it is tried again: {error:#}");
        self.instruments.kernel_failed();
        self.store_retry.failed();
    }

    /// Notes that turn times are not measured as they should be: steering goes on without.
    pub(super) fn not_measured(&mut self, error: &anyhow::Error) {
        tracing::warn!("turn times are not measured as the documents ask, and it is tried again: {error:#}");
        self.measure_retry.failed();
    }

    pub(super) fn measure_again(&mut self) {
        self.measure_retry.begins();
        let services = self.state.services().filter(|service| service.health_policy.turn_time);
        let services: Vec<_> = services.map(|service| service.id).collect();
        if let Err(error) = self.bring(&Scope::tables(&services)) {
            self.failed(&error);
        }
        if !self.measure_retry.is_pending() {
            self.measure_retry.succeeded();
        }
    }
}
