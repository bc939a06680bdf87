//! Carrying out a change: desired, programmed, acknowledged, saved, published, in this order. Whatever fails, the
//! desired state stays as it was and the kernel is brought back to it.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::steering::Steering;
use crate::{
    handle::{ChangeError, Done, Options, ZeroProof},
    model::{BackendId, Change, NodeId, Outcome, Service, State, Target, Touched, Zero},
    observe::{clock, events::EventKind},
    plan::{Machine, MapOp, Retired},
    source::{files::FileEvent, reconcile::Outcome as FileOutcome, store::Batch},
    telemetry::Source,
};

/// Keys and values of the store besides the state; `None` removes.
type Extras = Vec<(String, Option<Vec<u8>>)>;

impl<M: Machine> Steering<M> {
    /// Carries out all of the changes, or none.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub(super) fn change(&mut self, changes: &[Change], options: Options) -> Result<Done, ChangeError> {
        let (mut next, touched, outcome) = self.next(changes)?;
        if options.dry_run {
            let plan = self.plan(&next, &touched).map_err(ChangeError::Failed)?;
            return Ok(self.done(outcome, options, Instant::now(), next, plan));
        }
        if touched.is_empty() {
            return Ok(self.done(outcome, options, Instant::now(), next, Vec::new()));
        }
        let acknowledged = match self.program(&next, &touched) {
            Ok(acknowledged) => acknowledged,
            Err(error) => return Err(self.undo(error)),
        };
        next.settle();
        let batch = Batch { touched: std::slice::from_ref(&touched), ..Batch::default() };
        self.keep(next, batch, |steering| steering.prove(changes, options, acknowledged))?;
        // A restore is answered when the weight is back; a zero holds already, and its tables can wait.
        if changes.iter().all(|change| matches!(change, Change::Restore { .. })) {
            let stale: Vec<_> = self.stale().iter().copied().collect();
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
        self.retry_files();
        Ok(self.done(outcome, options, acknowledged, self.state.clone(), Vec::new()))
    }

    /// Makes `next` the desired state and saves it, once the kernel has it. What cannot be saved is undone.
    fn keep(
        &mut self,
        next: State,
        batch: Batch<'_>,
        also: impl FnOnce(&mut Self) -> Result<Extras>,
    ) -> Result<(), ChangeError> {
        let before = std::mem::replace(&mut self.state, next);
        let kept = also(self).and_then(|extras| {
            let extras: Vec<_> = extras.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
            self.store.commit_batch(&self.state, Batch { extras: &extras, ..batch })
        });
        kept.map_err(|error| {
            self.state = before;
            self.undo(error.context("saving the change"))
        })
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
        if let Err(error) = self.program(&state, &touched) {
            self.undo(error);
            return;
        }
        let batch = Batch { touched: std::slice::from_ref(&touched), marks: &marks, ..Batch::default() };
        if self.keep(state, batch, |_| Ok(Extras::new())).is_err() {
            return;
        }
        for mark in &marks {
            let message = format!("{} from {}", mark.document, mark.file.display());
            self.note(EventKind::SourceApplied, Some(mark.document.clone()), message);
        }
        self.publish();
    }

    /// The state after all of the changes.
    fn next(&self, changes: &[Change]) -> Result<(State, Touched, Outcome), ChangeError> {
        let now = Timestamp::now();
        let (mut state, mut touched, mut outcome) = (self.state.clone(), Touched::default(), Outcome::Unchanged);
        for change in changes {
            let applied = state.apply(change, now)?;
            state = applied.state;
            touched.extend(applied.touched);
            if applied.outcome != Outcome::Unchanged {
                outcome = applied.outcome;
            }
        }
        Ok((state, touched, outcome))
    }

    /// Brings the kernel to `next`. Returns the instant from which no new connection goes where none should: after
    /// the closing writes, which come first; for changes that close nothing, after all writes.
    fn program(&mut self, next: &State, touched: &Touched) -> Result<Instant> {
        let mut urgent: Vec<MapOp> = Vec::new();
        let mut nodes = Vec::new();
        for node in touched.nodes.iter().filter_map(|id| next.node_by_id(*id)) {
            if let Some(op) = self.programmed.plan_node(node) {
                urgent.push(op);
                nodes.push(node.id);
            }
        }
        let services: Vec<Arc<Service>> =
            touched.services.iter().filter_map(|id| next.service_by_id(*id).cloned()).collect();
        for service in &services {
            let closing = service.backends.iter().filter_map(|b| self.programmed.plan_backend(service, b));
            urgent.extend(closing.filter(|op| matches!(op, MapOp::CloseBackend { closed, .. } if *closed != 0)));
        }
        self.run_all(&urgent)?;
        let mut acknowledged = Instant::now();
        let mut built = Vec::with_capacity(services.len());
        for service in services {
            let table = self.program_service(next, &service)?;
            self.stale.remove(&service.id);
            built.push((service, table));
        }
        let removed = self.remove(next, touched)?;
        if urgent.is_empty() {
            acknowledged = Instant::now();
        }
        self.show(built)?;
        self.keeper.retire(removed);
        self.stale_nodes.extend(nodes);
        Ok(acknowledged)
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

    /// Keeps with every new zero what proves it, and drops the proofs of those that ended. Returns what the store keeps
    /// of that, in one transaction with the zero itself.
    fn prove(&mut self, changes: &[Change], options: Options, acknowledged: Instant) -> Result<Extras> {
        let mut extras = Extras::new();
        for change in changes {
            match change {
                Change::Zero { target, .. } if !self.zeros.contains_key(target) => {
                    let proof = ZeroProof {
                        at: Timestamp::now(),
                        monotonic_ns: clock::monotonic_ns(),
                        picked_before: self.picked(target)?,
                        programmed_in: acknowledged.duration_since(options.received),
                    };
                    let saved = serde_json::to_vec(&SavedProof::of(&proof)).context("writing the proof of a zero")?;
                    extras.push((proof_key(target), Some(saved)));
                    self.zeros.insert(target.clone(), Arc::new(proof));
                }
                Change::Restore { target } => {
                    extras.push((proof_key(target), None));
                    self.zeros.remove(target);
                }
                _ => {}
            }
        }
        Ok(extras)
    }

    /// Times that the backends of a target were chosen.
    pub(super) fn picked(&self, target: &Target) -> Result<u64> {
        let ids = backends_of(&self.state, target);
        Ok(self.machine.counters(&ids)?.iter().map(|counters| counters.picked).sum())
    }

    /// The proofs of the zeros that this agent found: as an earlier agent saved them, or beginning now.
    pub(super) fn load_proofs(&mut self) -> Result<()> {
        let boot = clock::boot_id();
        for (target, zero) in zeroed(&self.state) {
            let saved = self.store.get_extra(&proof_key(&target))?;
            let saved: Option<SavedProof> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // One from before this zero, or from before a boot, proves nothing.
            let saved = saved.filter(|saved| saved.boot == boot && saved.at >= zero.since);
            let proof = match saved {
                Some(saved) => saved.into(),
                None => ZeroProof {
                    at: Timestamp::now(),
                    monotonic_ns: clock::monotonic_ns(),
                    picked_before: self.picked(&target)?,
                    programmed_in: Default::default(),
                },
            };
            self.zeros.insert(target, Arc::new(proof));
        }
        Ok(())
    }

    fn undo(&mut self, error: anyhow::Error) -> ChangeError {
        tracing::error!("a change is undone: {error:#}");
        self.note(EventKind::KernelFailed, None, format!("a change is undone: {error:#}"));
        self.drop_proofs();
        self.recover();
        ChangeError::Failed(error)
    }

    /// Forgets the proofs of what is not zeroed any more.
    fn drop_proofs(&mut self) {
        let zeros = std::mem::take(&mut self.zeros);
        self.zeros = zeros.into_iter().filter(|(target, _)| is_zeroed(&self.state, target)).collect();
    }

    /// The writes that a change would make.
    fn plan(&self, next: &State, touched: &Touched) -> Result<Vec<String>> {
        let mut programmed = self.programmed.clone();
        let mut ops: Vec<MapOp> = touched
            .nodes
            .iter()
            .filter_map(|id| next.node_by_id(*id))
            .filter_map(|node| programmed.plan_node(node))
            .collect();
        for service in touched.services.iter().filter_map(|id| next.service_by_id(*id)) {
            ops.extend(programmed.plan_service(next, service, 0)?.0);
        }
        for (id, _) in &touched.removed_services {
            ops.extend(programmed.plan_removal(next, *id));
        }
        ops.extend(touched.removed_backends.iter().filter_map(|id| programmed.plan_backend_removal(*id)));
        Ok(ops.iter().map(ToString::to_string).collect())
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
                    (EventKind::Zeroed, target.to_string(), format!("zeroed by {}: {reason}", zero.owner))
                }
                Change::Restore { target } => (EventKind::Restored, target.to_string(), "restored".into()),
            };
            self.note(kind, Some(object), message);
        }
    }
}

/// A [`ZeroProof`] as the store holds it. Monotonic time has a meaning within one boot only.
#[derive(Serialize, Deserialize)]
struct SavedProof {
    at: Timestamp,
    monotonic_ns: u64,
    picked_before: u64,
    programmed_us: u64,
    boot: String,
}

impl SavedProof {
    fn of(proof: &ZeroProof) -> Self {
        Self {
            at: proof.at,
            monotonic_ns: proof.monotonic_ns,
            picked_before: proof.picked_before,
            programmed_us: proof.programmed_in.as_micros() as u64,
            boot: clock::boot_id(),
        }
    }
}

impl From<SavedProof> for ZeroProof {
    fn from(saved: SavedProof) -> Self {
        Self {
            at: saved.at,
            monotonic_ns: saved.monotonic_ns,
            picked_before: saved.picked_before,
            programmed_in: std::time::Duration::from_micros(saved.programmed_us),
        }
    }
}

fn proof_key(target: &Target) -> String {
    format!("proof/{target}")
}

fn zeroed(state: &State) -> Vec<(Target, Arc<Zero>)> {
    let nodes = state.nodes().filter_map(|node| Some((Target::Node(node.name.clone()), node.zero.clone()?)));
    let backends = state.services().flat_map(|service| {
        service.backends.iter().filter_map(|backend| {
            let target = Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
            Some((target, backend.zero.clone()?))
        })
    });
    nodes.chain(backends).collect()
}

fn is_zeroed(state: &State, target: &Target) -> bool {
    match target {
        Target::Node(node) => state.node(node.as_str()).is_some_and(|node| node.zero.is_some()),
        Target::Backend { service, backend } => state
            .service(service.as_str())
            .is_some_and(|service| service.backends.iter().any(|held| held.name == *backend && held.zero.is_some())),
    }
}

fn backends_of(state: &State, target: &Target) -> Vec<BackendId> {
    let mut ids: Vec<BackendId> = match target {
        Target::Node(node) => {
            let node = state.node(node.as_str()).map_or(NodeId(0), |node| node.id);
            state.node_backends(node).map(|(_, backend)| backend.id).collect()
        }
        Target::Backend { service, backend } => state
            .service(service.as_str())
            .and_then(|service| service.backends.iter().find(|held| held.name == *backend))
            .map(|backend| backend.id)
            .into_iter()
            .collect(),
    };
    ids.sort_unstable();
    ids
}
