//! Drains as the steering thread sees them: kept with their zeros, woken, ended, cancelled, and found again after a
//! restart. The work is done by [`super::drainer`].

use std::time::Instant;

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::{changes::Extras, steering::Steering};
use crate::{
    handle::{DrainEnded, Options},
    model::{Change, Drain, DrainEnd, Outcome, Target},
    observe::{
        events::EventKind,
        operations::{Operation, Phase},
    },
    plan::Machine,
    source::store::Batch,
};

/// Records of finished drains that the store keeps; the oldest go at a start.
const KEPT: usize = 128;
const PREFIX: &str = "operation/";

impl<M: Machine> Steering<M> {
    /// Records of the drains that these changes begin and end, for the transaction of the changes.
    pub(super) fn begin_drains(&self, changes: &[Change]) -> Result<Extras> {
        let mut extras = Extras::new();
        if let Some(operation) = &self.ending {
            extras.push((key(&operation.id), Some(record(operation)?)));
        }
        for change in changes {
            let Change::Zero { target, drain: Some(_), .. } = change else { continue };
            let Some(drain) = self.lasting(target) else { continue };
            if self.drains.get(target) != Some(&drain.operation) {
                let operation = Operation::drain(&drain.operation, target, drain.since, drain.deadline);
                extras.push((key(&operation.id), Some(record(&operation)?)));
            }
        }
        Ok(extras)
    }

    /// Takes note of the drains that a change has begun. Returns those that it has cancelled: to be told when everything
    /// else is.
    pub(super) fn follow_drains(&mut self, changes: &[Change]) -> Vec<(Target, String)> {
        let asked = changes.iter().filter_map(|change| match change {
            Change::Zero { target, drain: Some(_), .. } => Some(target),
            _ => None,
        });
        for target in asked {
            let Some(drain) = self.lasting(target).cloned() else { continue };
            self.news = true;
            if self.drains.insert(target.clone(), drain.operation.clone()).as_ref() == Some(&drain.operation) {
                self.operations.update(&drain.operation, |operation| operation.deadline = Some(drain.deadline));
                let message = format!("asked for again; until {:.0} at the latest", drain.deadline);
                self.note(EventKind::DrainMoved, Some(target.to_string()), message);
            } else {
                self.operations.put(Operation::drain(&drain.operation, target, drain.since, drain.deadline));
                let message = format!("no new connection comes; until {:.0} at the latest", drain.deadline);
                self.note(EventKind::DrainStarted, Some(target.to_string()), message);
            }
        }
        let gone: Vec<_> = self
            .drains
            .iter()
            .filter(|(target, operation)| self.lasting(target).is_none_or(|drain| drain.operation != **operation))
            .map(|(target, operation)| (target.clone(), operation.clone()))
            .collect();
        for (target, _) in &gone {
            self.drains.remove(target);
        }
        gone
    }

    /// Wakes the thread that carries drains out, when there is something for it. It reads what is published by then.
    pub(super) fn wake_drainer(&mut self) {
        if std::mem::take(&mut self.news) {
            // Without that thread nothing is drained, and that has been told.
            let _ = self.begun.send(());
        }
    }

    pub(super) fn end_drain(&mut self, ended: DrainEnded) {
        let DrainEnded { target, operation, end } = ended;
        // It may have been restored, or drained anew, while this was on its way.
        if self.drains.get(&target) != Some(&operation.id) {
            return;
        }
        let operation = Operation { finished_at: Some(Timestamp::now()), ..operation };
        let change = Change::EndDrain { target: target.clone(), operation: operation.id.clone(), end };
        // Before the change: it would be taken for a cancellation.
        let was = self.drains.remove(&target);
        let options = Options { dry_run: false, received: Instant::now() };
        self.ending = Some(operation.clone());
        let changed = self.change(&[change], options);
        self.ending = None;
        match changed {
            Ok(done) if done.outcome == Outcome::Unchanged => return,
            Ok(_) => {}
            Err(error) => {
                // It is found again by the next look.
                tracing::warn!(%target, %error, "the end of a drain cannot be noted yet");
                self.drains.extend(was.map(|id| (target, id)));
                return;
            }
        }
        let took = operation.finished_at.unwrap_or_default().duration_since(operation.started_at);
        self.instruments.drained(took.try_into().unwrap_or_default());
        let kind = match end {
            DrainEnd::Drained => EventKind::Drained,
            DrainEnd::DeadlineReached => EventKind::DrainDeadlineReached,
        };
        self.note(kind, Some(target.to_string()), &*operation.message);
        // Last: whoever waits finds everything else done.
        let id = operation.id.clone();
        self.operations.update(&id, |shown| *shown = operation);
    }

    /// Saves how far an operation has come, so that the next agent can tell.
    pub(super) fn keep_operation(&mut self, operation: &Operation) {
        let kept = record(operation).and_then(|bytes| {
            let extras = [(&*key(&operation.id), Some(&*bytes))];
            self.store.commit_batch(&self.state, Batch { extras: &extras, ..Batch::default() })
        });
        if let Err(error) = kept {
            tracing::warn!("the progress of {} is not saved: {error:#}", operation.id);
        }
    }

    /// Finds the operations that an earlier agent has saved.
    pub(super) fn load_operations(&mut self) -> Result<()> {
        let saved = self.store.extras(PREFIX)?;
        let mut operations: Vec<Operation> =
            saved.iter().filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok()).collect();
        let old = operations.len().saturating_sub(KEPT);
        let old: Vec<_> = operations.drain(..old).map(|operation| key(&operation.id)).collect();
        for operation in operations {
            self.operations.put(operation);
        }
        let extras: Vec<_> = old.iter().map(|key| (key.as_str(), None)).collect();
        self.store.commit_batch(&self.state, Batch { extras: &extras, ..Batch::default() })?;
        for (target, zero) in self.state.zeroed() {
            let Some(drain) = zero.lasting_drain() else { continue };
            if self.operations.get(&drain.operation).is_none() {
                self.operations.put(Operation::drain(&drain.operation, &target, drain.since, drain.deadline));
            }
            self.drains.insert(target, drain.operation.clone());
            self.news = true;
        }
        // One whose drain was taken away by an agent that died before it could say so.
        let lost = self.operations.list().into_iter().filter(|operation| !operation.is_finished());
        for operation in lost.filter(|lost| !self.drains.values().any(|id| *id == lost.id)).collect::<Vec<_>>() {
            if let Ok(target) = operation.target.parse() {
                self.cancel(&target, &operation.id);
            }
        }
        Ok(())
    }

    pub(super) fn cancel(&mut self, target: &Target, operation: &str) {
        let why = match target {
            _ if self.state.is_zeroed(target) => "another drain took its place",
            _ if self.expiring => "its zero has expired, and its target takes connections again",
            Target::Backend { .. } if self.state.backends_of(target).is_empty() => "its target left the configuration",
            Target::Node(_) | Target::Backend { .. } => "its target was restored",
        };
        let cancelled = self.operations.update(operation, |operation| {
            operation.phase = Phase::Cancelled;
            operation.finished_at = Some(Timestamp::now());
            operation.message = why.to_owned();
        });
        if let Some(cancelled) = cancelled {
            self.keep_operation(&cancelled);
            self.note(EventKind::DrainCancelled, Some(target.to_string()), why);
        }
    }

    /// The drain of a target while it lasts.
    fn lasting(&self, target: &Target) -> Option<&Drain> {
        self.state.zero(target)?.lasting_drain()
    }
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn record(operation: &Operation) -> Result<Vec<u8>> {
    serde_json::to_vec(operation).context("writing an operation")
}
