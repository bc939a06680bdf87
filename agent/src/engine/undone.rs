//! Zeros that the kernel holds and the state does not: those of an agent that ended before it could save them stay; those
//! that were answered with a failure, and that the kernel did not give back, do not.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use jiff::Timestamp;
use sluice_common::tables::{CLOSED_REMOVED, CLOSED_ZERO, Endpoint};

use super::{
    client::{ChangeError, Options},
    event_loop::Engine,
};
use crate::{
    model::{BackendId, Change, NodeId, Target, Zero},
    plan::{DataPlane, Entries},
    view::events::EventKind,
};

const PREFIX: &str = "undone/";

impl<M: DataPlane> Engine<M> {
    /// Brings the kernel back to the state before changes that failed. Where it refuses, the next agent has to know that
    /// their zeros do not hold.
    pub(super) fn undo(&mut self, error: anyhow::Error, changes: &[Change]) -> ChangeError {
        tracing::error!("a change is undone: {error:#}");
        self.instruments.kernel_failed();
        self.note(EventKind::KernelFailed, None, format!("a change is undone: {error:#}"));
        self.drop_proofs();
        self.bring_back();
        self.publish();
        if self.kernel_retry.is_pending() {
            let zeroed = changes.iter().filter_map(|change| match change {
                Change::Zero { target, .. } if !self.state.is_zeroed(target) => Some(target.clone()),
                _ => None,
            });
            let undone: Vec<Target> = zeroed.collect();
            if !undone.is_empty() {
                self.keep(undone.iter().map(|target| (key(target), Some(Vec::new()))).collect());
                self.undone.extend(undone);
            }
        }
        ChangeError::Failed(error)
    }

    /// The kernel is what it should be.
    pub(super) fn forget_undone(&mut self) {
        let undone = std::mem::take(&mut self.undone);
        if !undone.is_empty() {
            self.keep(undone.iter().map(|target| (key(target), None)).collect());
        }
    }

    /// A zero that the kernel holds and the store does not was in force when an agent ended before it could save it:
    /// it stays, unless that agent said that it failed.
    pub(super) fn adopt_zeros(&mut self) -> Result<()> {
        let saved = self.store.extras(PREFIX)?;
        let undone = saved.iter().filter_map(|(key, _)| key.strip_prefix(PREFIX)?.parse().ok());
        self.undone = undone.collect();
        let (nodes, backends) = self.programmed.zeroed();
        let nodes = nodes.into_iter().filter_map(|id| {
            let node = self.state.node_by_id(id).filter(|node| node.zero.is_none())?;
            Some(Target::Node(node.name.clone()))
        });
        let backends = backends.into_iter().filter_map(|(id, _)| {
            let (service, backend) = self.state.backend(id)?;
            let target = || Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
            backend.zero.is_none().then(target)
        });
        let targets = nodes.chain(backends).filter(|target| !self.undone.contains(target)).collect();
        self.keep_zeros(targets, "the agent before this one ended before it could save the zero")
    }

    /// Where zeros hold in the kernel of which the state does not know the target, as when its record was damaged: the
    /// addresses of the backends, and whether it is their node that is zeroed.
    pub(super) fn nameless_zeros(&self, held: &Entries) -> Vec<(Endpoint, bool)> {
        let is_nameless = |node: u32| {
            let is_closed = held.nodes.iter().any(|(id, closed)| *id == node && closed & CLOSED_ZERO != 0);
            is_closed && self.state.node_by_id(NodeId(node)).is_none()
        };
        let there = held.backends.iter().filter(|(_, backend)| backend.closed & CLOSED_REMOVED == 0);
        let zeros = there.filter_map(|(id, backend)| {
            let on_node = is_nameless(backend.node);
            let itself = backend.closed & CLOSED_ZERO != 0 && self.state.backend(BackendId(*id)).is_none();
            (on_node || itself).then(|| (Endpoint::v6(backend.address, backend.port, 0), on_node))
        });
        zeros.collect()
    }

    /// Keeps those of them whose backends are there again, as files bring them.
    pub(super) fn name_zeros(&mut self, nameless: &[(Endpoint, bool)]) -> Result<()> {
        let mut targets = BTreeSet::new();
        for (service, backend) in self.state.backends().filter(|_| !nameless.is_empty()) {
            let address = Endpoint::new(backend.address, 0);
            let Some((_, on_node)) = nameless.iter().find(|(held, _)| *held == address) else { continue };
            let node =
                self.state.node_by_id(backend.node).filter(|_| *on_node).map(|node| Target::Node(node.name.clone()));
            let itself = || Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
            targets.insert(node.unwrap_or_else(itself));
        }
        let targets = targets.into_iter().filter(|target| self.state.zero(target).is_none()).collect();
        self.keep_zeros(targets, "the record of what was zeroed is lost")
    }

    fn keep_zeros(&mut self, targets: Vec<Target>, why: &str) -> Result<()> {
        for target in targets {
            let zero = Zero {
                owner: "sluice".into(),
                reason: format!("found in force in the kernel: {why}"),
                since: Timestamp::now(),
                expires: None,
                drain: None,
            };
            tracing::warn!(%target, "{}", zero.reason);
            let change = Change::Zero { target, zero, drain: None, force: true };
            self.change(&[change], Options::now()).context("keeping a zero that was found in the kernel")?;
        }
        Ok(())
    }
}

fn key(target: &Target) -> String {
    format!("{PREFIX}{target}")
}
