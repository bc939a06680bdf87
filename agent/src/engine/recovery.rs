//! After a fault of the kernel or the disk: what is not as it should be is tried again, after pauses that grow.

use super::event_loop::Engine;
use crate::{
    plan::{DataPlane, Scope},
    source::store::{Batch, ExtraRecord},
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
            self.keep(Vec::new());
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
                self.forget_undone();
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

    /// Has the store keep these, now or when the disk lets it.
    pub(super) fn keep(&mut self, records: Vec<ExtraRecord>) {
        self.unsaved.extend(records);
        let extras: Vec<ExtraRecord> = self.unsaved.iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        match self.store.commit_batch(&self.state, Batch { extras: &extras, ..Batch::default() }) {
            Ok(()) => self.saved(),
            Err(error) => self.failed_to_save(&error),
        }
    }

    /// Notes that the store misses something that holds all the same: it is given to the store again after a while.
    pub(super) fn failed_to_save(&mut self, error: &anyhow::Error) {
        tracing::error!("what holds is not saved yet, and it is tried again: {error:#}");
        self.instruments.kernel_failed();
        // A fault that lasts is told once.
        if !self.store_retry.has_failed() {
            let message = format!("what holds is not saved, and it is tried again: {error:#}");
            self.note(EventKind::StoreFailed, None, message);
        }
        self.store_retry.failed();
    }

    /// Notes that the store has everything.
    pub(super) fn saved(&mut self) {
        self.unsaved.clear();
        self.machine.saved(self.state.revision());
        if self.store_retry.has_failed() {
            self.note(EventKind::StoreRecovered, None, "everything that holds is saved again");
        }
        self.store_retry.succeeded();
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
