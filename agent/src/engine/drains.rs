//! Drains as the engine sees them: kept with their zeros, woken, ended, cancelled, and found again after a
//! restart. The work is done by [`super::workers::drain`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Instant,
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{
    client::{ChangeError, DrainEndAck, DrainEnded},
    event_loop::Engine,
    requests::Next,
    retry::Retry,
    transaction::{OnFailure, Proposal},
};
use crate::{
    model::{Change, Drain, DrainEnd, Ending, OperationPhase, Target, Touched},
    plan::DataPlane,
    source::store::ExtraRecord,
    view::{
        events::EventKind,
        operations::{Gone, Operation},
    },
};

/// Records of finished drains that the store keeps; the oldest go as others come.
const KEPT: usize = 128;
const PREFIX: &str = "operation/";
/// Ends, or records, in one transaction. A zero that comes in that moment waits for it.
pub(super) const AT_ONCE: usize = 256;
/// Requests that may come before what has waited for a moment without one.
pub(super) const AHEAD: u32 = 64;

/// What drains leave to a moment in which nobody asks for anything: a zero does not wait behind hundreds of them.
#[derive(Debug, Default)]
pub(super) struct DeferredWrites {
    /// Ends to be noted, by their operations, with those who wait for that.
    ended: BTreeMap<String, (DrainEnded, Vec<oneshot::Sender<DrainEndAck>>)>,
    /// Operations that have come further since the store kept them.
    moved: BTreeSet<String>,
    /// Requests that came before these.
    ahead: u32,
    /// Of ends that the kernel refused.
    pub(super) retry: Retry,
    /// Finished operations that the store keeps, in the order of their ends.
    finished: VecDeque<String>,
}

impl DeferredWrites {
    pub fn ends(&mut self, ended: DrainEnded, reply: oneshot::Sender<DrainEndAck>) {
        let mut waiting = self.ended.remove(&ended.operation.id).map(|(_, waiting)| waiting).unwrap_or_default();
        waiting.push(reply);
        self.ended.insert(ended.operation.id.clone(), (ended, waiting));
    }

    pub fn moves(&mut self, operation: &str) {
        self.moved.insert(operation.to_owned());
    }

    pub fn is_empty(&self) -> bool {
        self.ended.is_empty() && self.moved.is_empty()
    }

    /// Whether there is something to do now.
    pub fn is_due(&self, now: Instant) -> bool {
        !self.is_empty() && self.put_off().is_none_or(|until| until <= now)
    }

    /// When there is something to do, if that is later.
    pub fn put_off(&self) -> Option<Instant> {
        self.retry.at().filter(|_| !self.is_empty())
    }

    /// Has the store keep a finished operation. Returns the records of those that it keeps no longer.
    fn finishes(&mut self, operation: &str) -> Vec<ExtraRecord> {
        if !self.finished.iter().any(|held| held == operation) {
            self.finished.push_back(operation.to_owned());
        }
        let old = self.finished.len().saturating_sub(KEPT);
        self.finished.drain(..old).map(|id| (key(&id), None)).collect()
    }

    /// Another request comes first. Returns whether that has happened too often by now.
    pub fn gives_way(&mut self) -> bool {
        self.ahead += u32::from(self.is_due(Instant::now()));
        self.ahead > AHEAD
    }
}

impl<M: DataPlane> Engine<M> {
    /// Records of the drains that these changes begin, for the transaction of the changes.
    pub(super) fn begin_drains(&self, changes: &[Change]) -> Result<Vec<ExtraRecord>> {
        let mut extras = Vec::new();
        for change in changes {
            let Change::Zero { target, drain: Some(_), .. } = change else { continue };
            let Some(drain) = self.lasting(target) else { continue };
            if self.drains.get(target) != Some(&drain.operation) {
                let operation = Operation::drain(&drain.operation, target, drain.since, drain.deadline);
                let operation = operation.by(self.by.as_ref());
                extras.push((key(&operation.id), Some(record(&operation)?)));
            }
        }
        Ok(extras)
    }

    /// Has the operations of drains remember the backends that a change takes out of the configuration, before it does:
    /// their connections count. Returns the records, for the transaction of the change.
    pub(super) fn remember_gone(&self, touched: &Touched) -> Result<Vec<ExtraRecord>> {
        let mut records = BTreeMap::new();
        for id in &touched.removed_backends {
            let Some((service, backend)) = self.state.backend(*id) else { continue };
            let own = Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
            let node = self.state.node_by_id(backend.node).map(|node| Target::Node(node.name.clone()));
            let gone = Gone { id: id.0, address: backend.address };
            for drain in [Some(own), node].iter().flatten().filter_map(|target| self.drains.get(target)) {
                let remember = |operation: &mut Operation| {
                    if !operation.gone.contains(&gone) {
                        operation.gone.push(gone);
                    }
                };
                if let Some(operation) = self.operations.update(drain, remember) {
                    records.insert(key(drain), Some(record(&operation)?));
                }
            }
        }
        Ok(records.into_iter().collect())
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
                let operation = Operation::drain(&drain.operation, target, drain.since, drain.deadline);
                self.operations.put(operation.by(self.by.as_ref()));
                let message = format!("no new connection comes; until {:.0} at the latest", drain.deadline);
                self.events.record_by(self.by.clone(), EventKind::DrainStarted, Some(target.to_string()), message);
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

    /// Does some of what drains have left for later. What the kernel refuses stays, and is tried again; what the disk
    /// refuses is kept later.
    pub(super) fn catch_up(&mut self) {
        self.later.ahead = 0;
        self.later.retry.begins();
        if self.later.ended.is_empty() {
            self.keep_moved();
        } else {
            self.note_ends();
        }
        if !self.later.retry.is_pending() {
            self.later.retry.succeeded();
        }
    }

    /// Ends drains, all in one transaction.
    fn note_ends(&mut self) {
        let now = Timestamp::now();
        let is_attached = self.look_at_attachment();
        if !is_attached {
            self.publish();
        }
        let mut ended = Vec::new();
        while ended.len() < AT_ONCE
            && let Some((_, (mut one, waiting))) = self.later.ended.pop_first()
        {
            // It may have been restored, drained anew or on other terms while this was on its way. And what no program has
            // followed may be there still.
            let is_proven = is_attached || one.end == DrainEnd::DeadlineReached;
            if is_proven && self.lasting(&one.target) == Some(&one.drain) {
                one.operation.finished_at = Some(now);
                ended.push((one, waiting));
            } else {
                answer(waiting, DrainEndAck::Superseded);
            }
        }
        if ended.is_empty() {
            return;
        }
        if let Err(error) = self.end_drains(ended.iter().map(|(one, _)| one)) {
            tracing::warn!(%error, "the ends of {} drains cannot be noted yet", ended.len());
            self.later.ended.extend(ended.into_iter().map(|(one, waiting)| (one.operation.id.clone(), (one, waiting))));
            return self.later.retry.failed();
        }
        self.publish();
        for (DrainEnded { target, operation, end, .. }, waiting) in ended {
            self.instruments.drained(now.duration_since(operation.started_at).try_into().unwrap_or_default());
            let kind = match end {
                DrainEnd::Drained => EventKind::Drained,
                DrainEnd::DeadlineReached => EventKind::DrainDeadlineReached,
            };
            self.note(kind, Some(target.to_string()), &*operation.message);
            // Last: whoever waits finds everything else done.
            let id = operation.id.clone();
            self.operations.update(&id, |shown| *shown = operation);
            answer(waiting, DrainEndAck::Ended);
        }
    }

    /// The change of the state, the tables and the store. It needs no slots: what is drained is zeroed, and stays so. Flows
    /// that were kept until now are not any more.
    fn end_drains<'a>(&mut self, ended: impl Iterator<Item = &'a DrainEnded> + Clone) -> Result<(), ChangeError> {
        let ending =
            |one: &DrainEnded| Ending { target: one.target.clone(), operation: one.operation.id.clone(), end: one.end };
        let changes = [Change::EndDrains { ends: ended.clone().map(ending).collect() }];
        let records = ended.clone().map(|one| Ok((key(&one.operation.id), Some(record(&one.operation)?))));
        let mut records = records.collect::<Result<Vec<_>>>().map_err(ChangeError::Failed)?;
        records.extend(ended.clone().flat_map(|one| self.later.finishes(&one.operation.id)).collect::<Vec<_>>());
        let Next { state: next, touched, .. } = self.next(&changes)?;
        for one in ended.clone() {
            self.drains.remove(&one.target);
        }
        let drains = ended.map(|one| (one.target.clone(), one.operation.id.clone())).collect::<Vec<_>>();
        let committed = self.commit(Proposal {
            next,
            touched,
            changes: &changes,
            marks: &[],
            records,
            received: Instant::now(),
            // Whoever waits for a drain has a deadline: it does not wait for the disk.
            on_failure: OnFailure::HoldUnsaved,
        });
        match committed {
            // What there was to keep of them is kept with their ends.
            Ok(_) => self.later.moved.retain(|id| !drains.iter().any(|(_, operation)| operation == id)),
            Err(error) => {
                self.drains.extend(drains);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Saves how far operations have come, so that the next agent can tell.
    fn keep_moved(&mut self) {
        let mut records = Vec::new();
        for _ in 0..AT_ONCE {
            let Some(id) = self.later.moved.pop_first() else { break };
            // As it is by now.
            let Some(operation) = self.operations.get(&id) else { continue };
            match record(&operation) {
                Ok(bytes) => records.push((key(&id), Some(bytes))),
                Err(error) => tracing::warn!("the progress of {id} is not saved: {error:#}"),
            }
            if operation.is_finished() {
                records.extend(self.later.finishes(&id));
            }
        }
        if !records.is_empty() {
            self.keep(records);
        }
    }

    /// Finds the operations that an earlier agent has saved.
    pub(super) fn load_operations(&mut self) -> Result<()> {
        let saved = self.store.extras(PREFIX)?;
        let mut operations: Vec<Operation> =
            saved.iter().filter_map(|(_, bytes)| serde_json::from_slice(bytes).ok()).collect();
        // One that lasts knows what left the configuration meanwhile: it stays, however old.
        let mut finished: Vec<_> = operations.iter().filter(|operation| operation.is_finished()).collect();
        finished.sort_by_key(|operation| operation.finished_at);
        let finished: Vec<_> = finished.into_iter().map(|operation| operation.id.clone()).collect();
        let forgotten: Vec<_> = finished.iter().flat_map(|id| self.later.finishes(id)).collect();
        operations.retain(|operation| !operation.is_finished() || self.later.finished.contains(&operation.id));
        for operation in operations {
            self.operations.put(operation);
        }
        if !forgotten.is_empty() {
            self.keep(forgotten);
        }
        for (target, zero) in self.state.zeroed() {
            let Some(drain) = zero.lasting_drain() else { continue };
            // An end may have been saved with its record only.
            if self.operations.get(&drain.operation).is_none_or(|operation| operation.is_finished()) {
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
            operation.phase = OperationPhase::Cancelled;
            operation.finished_at = Some(Timestamp::now());
            operation.message = why.to_owned();
        });
        if cancelled.is_some() {
            self.later.moves(operation);
            self.events.record_by(self.by.clone(), EventKind::DrainCancelled, Some(target.to_string()), why);
        }
    }

    /// The drain of a target while it lasts.
    fn lasting(&self, target: &Target) -> Option<&Drain> {
        self.state.zero(target)?.lasting_drain()
    }
}

/// Tells those who wait for the end of a drain. They may have gone.
fn answer(waiting: Vec<oneshot::Sender<DrainEndAck>>, ack: DrainEndAck) {
    for reply in waiting {
        let _ = reply.send(ack);
    }
}

fn key(id: &str) -> String {
    format!("{PREFIX}{id}")
}

fn record(operation: &Operation) -> Result<Vec<u8>> {
    serde_json::to_vec(operation).context("writing an operation")
}
