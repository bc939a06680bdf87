//! Carrying out a change: desired, programmed, acknowledged, saved, published, in this order. Whatever fails, the
//! desired state stays as it was and the kernel is brought back to it.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use anyhow::Result;
use jiff::Timestamp;

use super::{health_updates, steering::Steering, warmups::Warming};
use crate::control::warmup::Ramps;
use crate::engine::client::ChangeError;
use crate::engine::client::Done;
use crate::engine::client::Options;
use crate::host::clock;
use crate::model::Change;
use crate::model::Outcome;
use crate::model::Service;
use crate::model::State;
use crate::model::Target;
use crate::model::Touched;
use crate::plan::DataPlane;
use crate::plan::MapOp;
use crate::plan::Retired;
use crate::plan::draining;
use crate::source::files::FileEvent;
use crate::source::reconcile::Outcome as FileOutcome;
use crate::source::store::Batch;
use crate::telemetry::Source;
use crate::view::events::EventKind;

/// Keys and values of the store besides the state; `None` removes.
pub(super) type ExtraRecords = Vec<(String, Option<Vec<u8>>)>;

/// Changes of one request may wait for each other. So many rounds are made as long as each gets something done.
const ROUNDS: u32 = 16;

impl<M: DataPlane> Steering<M> {
    /// Carries out all of the changes, or none.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub(super) fn change(&mut self, changes: &[Change], options: Options) -> Result<Done, ChangeError> {
        let (mut next, touched, outcome) = self.next(changes)?;
        // One time for what is programmed and what is kept: a ramp must make no step in between.
        let now = clock::stamp();
        if options.dry_run {
            let ramps = self.warm_up(&next, &touched, &now).ramps;
            let plan = self.plan(&next, &ramps, &touched).map_err(ChangeError::Failed)?;
            return Ok(self.done(outcome, options, Instant::now(), next, plan));
        }
        if touched.is_empty() {
            return Ok(self.done(outcome, options, Instant::now(), next, Vec::new()));
        }
        // What a zero makes cold takes nothing, so no table asks for it: it is looked for once the zero holds.
        let zeroes = changes.iter().all(|change| matches!(change, Change::Zero { .. }));
        let warming = (!zeroes).then(|| self.warm_up(&next, &touched, &now));
        let closes = changes.iter().all(|change| matches!(change, Change::Zero { .. } | Change::UpdateHealth { .. }));
        // A lease that is renewed concerns no table.
        let is_found = changes.iter().all(|change| matches!(change, Change::UpdateHealth { .. }));
        let is_unchanged = warming.as_ref().is_some_and(Warming::is_unchanged);
        let programmed = if is_found && is_unchanged && health_updates::steer_alike(&self.state, &next, &touched) {
            Ok(Instant::now())
        } else {
            let ramps = warming.as_ref().map_or_else(|| self.ramps.clone(), |warming| warming.ramps.clone());
            self.program(&next, &ramps, &touched, closes)
        };
        let acknowledged = match programmed {
            Ok(acknowledged) => acknowledged,
            Err(error) => return Err(self.undo(error)),
        };
        let warming = warming.unwrap_or_else(|| self.warm_up(&next, &touched, &now));
        next.settle();
        let batch = Batch { touched: std::slice::from_ref(&touched), ..Batch::default() };
        let gone = self.zeros_that_go(&touched);
        let drained = self.remember_gone(&touched);
        let before = self.state.clone();
        self.keep(next, warming, batch, |steering| {
            let others = steering.prove_for_others(&touched)?;
            let drains = steering.begin_drains(changes)?;
            Ok([others, steering.prove(changes, options, acknowledged)?, drains, drained?].concat())
        })?;
        let cancelled = self.follow_drains(changes);
        // A restore is answered when the weight is back; a zero holds already, and its tables can wait.
        if changes.iter().all(|change| matches!(change, Change::Restore { .. })) {
            let concerned = touched.nodes.iter().flat_map(|node| self.state.node_services(*node));
            let mut concerned: BTreeSet<_> = concerned.map(|service| service.id).collect();
            concerned.extend(&touched.services);
            let stale: Vec<_> = self.stale().intersection(&concerned).copied().collect();
            if let Err(error) = self.rebuild(&stale) {
                self.failed(&error);
            }
        }
        if !touched.removed_services.is_empty() || !touched.removed_backends.is_empty() {
            self.drop_proofs();
        }
        self.instruments.applied(acknowledged.saturating_duration_since(options.received));
        if changes.iter().any(|change| matches!(change, Change::Zero { .. })) {
            self.instruments.zeroed(acknowledged.saturating_duration_since(options.received));
        }
        self.tell(changes, outcome);
        self.tell_health(&before, &touched);
        self.tell_gone(gone);
        self.retry_files();
        let done = self.done(outcome, options, acknowledged, self.state.clone(), Vec::new());
        for (target, operation) in cancelled {
            self.cancel(&target, &operation);
        }
        Ok(done)
    }

    /// Makes `next` the desired state and saves it, once the kernel has it. What cannot be saved is undone.
    pub(super) fn keep(
        &mut self,
        next: State,
        warming: Warming,
        batch: Batch<'_>,
        also: impl FnOnce(&mut Self) -> Result<ExtraRecords>,
    ) -> Result<(), ChangeError> {
        let Warming { ramps, followed, records } = warming;
        let (before, zeros) = (std::mem::replace(&mut self.state, next), self.zeros.clone());
        let cold = std::mem::replace(&mut self.ramps, ramps);
        let kept = also(self).and_then(|extras| {
            let extras = [extras, records].concat();
            let extras: Vec<_> = extras.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
            self.store.commit_batch(&self.state, Batch { extras: &extras, ..batch })
        });
        kept.map_err(|error| {
            (self.state, self.zeros, self.ramps) = (before, zeros, cold);
            self.undo(error.context("saving the change"))
        })?;
        self.tell_warmups(EventKind::WarmupStarted, &followed.begun);
        Ok(())
    }

    /// Applies what one look at the watched files found.
    pub(super) fn files(&mut self, events: &[FileEvent]) {
        let outcome = self.reconciler.handle(events, |file| self.store.applied(file), &self.state, Timestamp::now());
        match outcome {
            Ok(outcome) => self.apply_files(outcome),
            Err(error) => tracing::error!("the watched files cannot be compared with the store: {error:#}"),
        }
    }

    /// What a file asked for and was refused may be possible now.
    fn retry_files(&mut self) {
        let outcome = self.reconciler.retry(&self.state, Timestamp::now());
        self.apply_files(outcome);
    }

    fn apply_files(&mut self, outcome: FileOutcome) {
        let FileOutcome { state, touched, marks, problems } = outcome;
        for problem in problems {
            let place = problem.document.map(|document| format!(" ({document})")).unwrap_or_default();
            let message = format!("{}{place}: {}", problem.file.display(), problem.message);
            self.instruments.refused(Source::File);
            tracing::error!("a document is not applied, what was there before stays: {message}");
            self.note(EventKind::SourceFailed, None, message);
        }
        if touched.is_empty() && marks.is_empty() {
            return;
        }
        let warming = self.warm_up(&state, &touched, &clock::stamp());
        if let Err(error) = self.program(&state, &warming.ramps, &touched, false) {
            self.undo(error);
            return;
        }
        let batch = Batch { touched: std::slice::from_ref(&touched), marks: &marks, ..Batch::default() };
        let gone = self.zeros_that_go(&touched);
        let drained = self.remember_gone(&touched);
        let before = self.state.clone();
        let also = |steering: &mut Self| Ok([steering.prove_for_others(&touched)?, drained?].concat());
        if self.keep(state, warming, batch, also).is_err() {
            return;
        }
        self.tell_health(&before, &touched);
        for mark in &marks {
            let (kind, message) = match (mark.hash, mark.document.starts_with("node/")) {
                (Some(_), _) => (EventKind::SourceApplied, format!("{} from {}", mark.document, mark.file.display())),
                (None, true) => (EventKind::NodeDeleted, format!("no longer in {}", mark.file.display())),
                (None, false) => (EventKind::ServiceDeleted, format!("no longer in {}", mark.file.display())),
            };
            self.note(kind, Some(mark.document.clone()), message);
        }
        self.tell_gone(gone);
        let cancelled = self.follow_drains(&[]);
        self.publish();
        for (target, operation) in cancelled {
            self.cancel(&target, &operation);
        }
    }

    /// The state after all of the changes, in whatever order they are possible: one may free the frontend that another
    /// takes.
    pub(super) fn next(&self, changes: &[Change]) -> Result<(State, Touched, Outcome), ChangeError> {
        let now = Timestamp::now();
        let (mut state, mut touched, mut outcome) = (self.state.clone(), Touched::default(), Outcome::Unchanged);
        let mut left: Vec<(usize, &Change)> = (1..).zip(changes).collect();
        for round in 1.. {
            let (before, mut first) = (left.len(), None);
            left.retain(|(number, change)| match state.apply(change, now) {
                Ok(applied) => {
                    state = applied.state;
                    touched.extend(applied.touched);
                    if applied.outcome != Outcome::Unchanged {
                        outcome = applied.outcome;
                    }
                    false
                }
                Err(refusal) => {
                    first.get_or_insert((*number, refusal));
                    true
                }
            });
            match first {
                Some((number, refusal)) if left.len() == before || round == ROUNDS => {
                    return Err(if changes.len() > 1 { refusal.of_document(number) } else { refusal }.into());
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok((state, touched, outcome))
    }

    /// Brings the kernel to `next`. Returns the instant from which no new connection goes where none should: after
    /// the closing writes, which come first; for changes that close nothing, after all writes.
    ///
    /// `closes`: it is nothing but zeros, which need no tables.
    fn program(&mut self, next: &State, ramps: &Ramps, touched: &Touched, closes: bool) -> Result<Instant> {
        let services: Vec<Arc<Service>> =
            touched.services.iter().filter_map(|id| next.service_by_id(*id).cloned()).collect();
        let nodes = touched.nodes.iter().filter_map(|id| next.node_by_id(*id));
        let nodes: Vec<_> = nodes.filter_map(|node| Some((node.id, self.programmed.plan_node(node)?))).collect();
        let (opening, mut closing): (Vec<MapOp>, Vec<MapOp>) =
            nodes.iter().map(|(_, op)| op.clone()).partition(|op| matches!(op, MapOp::SetNode { closed: 0, .. }));
        closing.extend(self.plan_closing(next, &services));
        self.run_all(&closing)?;
        let mut acknowledged = Instant::now();
        // Before anything is opened again, nothing is closed any more.
        let (staying, draining): (Vec<MapOp>, _) =
            self.plan_leaving(next, touched).into_iter().partition(MapOp::lets_stay);
        self.run_all(&staying)?;
        self.run_all(&opening)?;
        if closing.is_empty() {
            acknowledged = Instant::now();
        }
        self.run_all(&draining)?;
        let mut built = Vec::with_capacity(services.len());
        for service in services {
            match self.program_service(next, ramps, &service) {
                Ok(table) => {
                    self.stale.remove(&service.id);
                    built.push((service, table));
                }
                // A zero is in force by now, table or not.
                Err(error) if closes => {
                    self.stale.insert(service.id);
                    self.failed(&error);
                }
                Err(error) => return Err(error),
            }
        }
        let removed = self.remove(next, touched)?;
        if closing.is_empty() && opening.is_empty() {
            acknowledged = Instant::now();
        }
        self.show(built)?;
        self.keeper.retire(removed);
        self.stale_nodes.extend(nodes.iter().map(|(id, _)| *id));
        Ok(acknowledged)
    }

    /// Writes that close backends of these services, one each.
    pub(super) fn plan_closing(&self, next: &State, services: &[Arc<Service>]) -> Vec<MapOp> {
        let of_service = |service: &Arc<Service>| {
            let panic = next.panics(service);
            let closing = service.backends.iter().filter_map(|b| self.programmed.plan_closing(service, b, panic));
            closing.collect::<Vec<_>>()
        };
        services.iter().flat_map(of_service).collect()
    }

    /// Writes that begin and end the closing of connections.
    pub(super) fn plan_leaving(&self, next: &State, touched: &Touched) -> Vec<MapOp> {
        let concerned = draining::concerned(&self.state, next, touched).into_iter();
        let writes = concerned.filter_map(|(service, backend)| self.programmed.plan_leaving(next, service, backend));
        let gone = touched.removed_backends.iter().filter_map(|id| self.programmed.plan_staying(*id));
        writes.chain(gone).collect()
    }

    /// Takes away what left the configuration.
    fn remove(&mut self, next: &State, touched: &Touched) -> Result<Retired> {
        let mut retired = Retired::default();
        for (id, _) in &touched.removed_services {
            let ops = self.programmed.plan_removal(next, *id);
            self.run_all(&ops)?;
            self.view.remove(id);
            self.stale.remove(id);
            retired.services.push(*id);
        }
        let closing: Vec<_> =
            touched.removed_backends.iter().filter_map(|id| self.programmed.plan_backend_removal(*id)).collect();
        self.run_all(&closing)?;
        retired.backends.extend(&touched.removed_backends);
        for (id, _) in &touched.removed_nodes {
            self.run_all(&[MapOp::SetNode { node: id.0, closed: 0 }])?;
            retired.nodes.push(*id);
        }
        Ok(retired)
    }

    pub(super) fn undo(&mut self, error: anyhow::Error) -> ChangeError {
        tracing::error!("a change is undone: {error:#}");
        self.instruments.kernel_failed();
        self.note(EventKind::KernelFailed, None, format!("a change is undone: {error:#}"));
        self.drop_proofs();
        self.recover();
        ChangeError::Failed(error)
    }

    /// The writes that a change would make.
    fn plan(&self, next: &State, ramps: &Ramps, touched: &Touched) -> Result<Vec<String>> {
        let mut programmed = self.programmed.clone();
        let mut ops: Vec<MapOp> = touched
            .nodes
            .iter()
            .filter_map(|id| next.node_by_id(*id))
            .filter_map(|node| programmed.plan_node(node))
            .collect();
        for service in touched.services.iter().filter_map(|id| next.service_by_id(*id)) {
            ops.extend(programmed.plan_service(next, ramps, service, 0)?.0);
        }
        for (id, _) in &touched.removed_services {
            ops.extend(programmed.plan_removal(next, *id));
        }
        ops.extend(touched.removed_backends.iter().filter_map(|id| programmed.plan_backend_removal(*id)));
        ops.extend(self.plan_leaving(next, touched));
        Ok(crate::view::writes::lines(&ops, &self.state, next))
    }

    fn done(&mut self, outcome: Outcome, options: Options, at: Instant, state: State, plan: Vec<String>) -> Done {
        let published = if options.dry_run { self.as_published(state) } else { self.publish() };
        Done {
            outcome,
            programmed_in: at.saturating_duration_since(options.received),
            acknowledged_at: Timestamp::now(),
            published,
            plan,
        }
    }

    /// Zeros whose backends leave the configuration.
    fn zeros_that_go(&self, touched: &Touched) -> Vec<Target> {
        let backends = touched.removed_backends.iter().filter_map(|id| self.state.backend(*id));
        backends
            .filter(|(_, backend)| backend.zero.is_some())
            .map(|(service, backend)| Target::Backend { service: service.name.clone(), backend: backend.name.clone() })
            .collect()
    }

    /// A zero that came with its backend went with it: should the backend come again, it takes connections.
    fn tell_gone(&self, gone: Vec<Target>) {
        for target in gone.into_iter().filter(|target| !self.state.is_zeroed(target)) {
            let message = "its backend left the configuration, and its zero with it";
            self.note(EventKind::Restored, Some(target.to_string()), message);
        }
    }

    fn tell(&self, changes: &[Change], outcome: Outcome) {
        for change in changes {
            let (kind, object, message) = match change {
                Change::PutService { document, .. } => {
                    let kind = if outcome == Outcome::Created && changes.len() == 1 {
                        EventKind::ServiceCreated
                    } else {
                        EventKind::ServiceChanged
                    };
                    (kind, format!("service/{}", document.metadata.name), "its document was applied".into())
                }
                Change::PatchService { service, .. } => {
                    (EventKind::ServiceChanged, format!("service/{service}"), "its document was patched".into())
                }
                Change::DeleteService { service, .. } => {
                    (EventKind::ServiceDeleted, format!("service/{service}"), "deleted".into())
                }
                Change::PatchBackend { service, backend, patch, .. } => {
                    (EventKind::BackendChanged, format!("{service}/{backend}"), format!("patched with {patch}"))
                }
                Change::PutNode { document } => {
                    (EventKind::NodeChanged, format!("node/{}", document.metadata.name), "declared".into())
                }
                Change::DeleteNode { node } | Change::UndeclareNode { node } => {
                    (EventKind::NodeDeleted, format!("node/{node}"), "no longer declared".into())
                }
                Change::Zero { target, zero, .. } => {
                    let reason = if zero.reason.is_empty() { "no reason given" } else { &zero.reason };
                    let owner = self.state.zero(target).map_or(&*zero.owner, |held| &*held.owner);
                    (EventKind::Zeroed, target.to_string(), format!("zeroed by {owner}: {reason}"))
                }
                Change::Restore { target } => (EventKind::Restored, target.to_string(), "restored".into()),
                // Told with all that is known of it.
                Change::EndDrains { .. } | Change::UpdateHealth { .. } => continue,
            };
            self.note(kind, Some(object), message);
        }
    }
}
