//! The one way from a proposed state to one that is in force: planned, written, acknowledged, saved, told. Requests,
//! watched files, health updates, the ends of drains and the recovery from a failure all come through here.

use std::{sync::Arc, time::Instant};

use anyhow::{Context, Result, anyhow};

use super::{client::ChangeError, event_loop::Engine, retry::Retry, warmups::Warming};
use crate::{
    control::warmup::Ramps,
    host::clock,
    model::{Change, Refusal, Service, State, Target, Touched, undo::Undo},
    plan::{DataPlane, Goal, MapOp, NoRoom, Retired, Scope, Step, Transition, service::Built, transition},
    source::store::{AppliedMark, Batch, ExtraRecord},
    view::events::EventKind,
};

/// A state that somebody wants to be in force.
pub(super) struct Proposal<'a> {
    pub next: State,
    pub touched: Touched,
    /// The changes that lead to it; empty when documents do.
    pub changes: &'a [Change],
    /// The documents that lead to it.
    pub marks: &'a [AppliedMark],
    /// What the store keeps with it, besides what follows from the changes.
    pub records: Vec<ExtraRecord>,
    /// When it was asked for.
    pub received: Instant,
    /// What becomes of it when the kernel or the disk fails.
    pub on_failure: OnFailure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnFailure {
    /// The state stays as it was, and the kernel is brought back to it.
    Undo,
    /// As [`OnFailure::Undo`] when the kernel fails. When it is the disk alone, as for a zero: it holds, and is saved as
    /// soon as the disk lets it.
    HoldUnsaved,
    /// It is so whatever the kernel and the disk say, as what was found of a backend: both are tried again.
    Hold,
}

/// A proposal that is in force.
pub(super) struct Committed {
    /// From this instant on, no new connection goes where none should.
    pub acknowledged: Instant,
    /// Drains that it has ended, with their operations: to be told last, see [`Engine::publish`].
    pub cancelled: Vec<(Target, String)>,
    /// Why it is not saved yet, if it is not.
    pub unsaved: Option<String>,
}

/// What came of a transition's writes.
struct Written {
    acknowledged: Instant,
    /// The first table that could not be written, where that is no reason to undo the rest.
    failed: Option<anyhow::Error>,
}

impl<M: DataPlane> Engine<M> {
    /// Puts a proposal in force: the kernel first, then the store.
    ///
    /// # Errors
    /// Without room: nothing was written. Failed: the kernel or the disk said no, and what was written is undone. With [`OnFailure::Hold`] it does not fail.
    pub(super) fn commit(&mut self, proposal: Proposal<'_>) -> Result<Committed, ChangeError> {
        let Proposal { mut next, touched, changes, marks, records, received, on_failure } = proposal;
        // One time for what is programmed and what is kept: a ramp must make no step in between.
        let now = clock::stamp();
        // What a zero makes cold takes nothing, so no table asks for it: that is looked for once the zero holds.
        let zeroes = !changes.is_empty() && changes.iter().all(|change| matches!(change, Change::Zero { .. }));
        let warming = (!zeroes).then(|| self.warm_up(&next, &touched, &now));
        let ramps = warming.as_ref().map_or_else(|| self.ramps.clone(), |warming| warming.ramps.clone());
        let holds = on_failure == OnFailure::Hold;
        let planned = self.planned(&Scope::from(&touched), &next, &ramps, holds);
        let needs_tables = !holds && !without_tables(changes);
        if needs_tables && !planned.without_room.is_empty() {
            return Err(without_room(&planned.without_room, &next));
        }
        let written = match self.write(planned, !needs_tables) {
            Ok(written) => written,
            Err(error) if holds => Written { acknowledged: Instant::now(), failed: Some(error) },
            Err(error) => return Err(self.undo(error, changes)),
        };
        if let Some(error) = &written.failed {
            self.failed(error);
        }
        touched.removed_services.iter().for_each(|(id, _)| self.forget_table(*id));
        let warming = warming.unwrap_or_else(|| self.warm_up(&next, &touched, &now));
        next.settle();

        let gone = self.zeros_that_go(&touched);
        let drained = self.remember_gone(&touched);
        let before = std::mem::replace(&mut self.state, next);
        let zeros = self.zeros.clone();
        let Warming { ramps, begun: warming_up, records: warmups } = warming;
        let cold = std::mem::replace(&mut self.ramps, ramps);
        let kept = drained.and_then(|drained| {
            let proofs = self.prove(&touched, changes, received, written.acknowledged)?;
            let begun = self.begin_drains(changes)?;
            Ok([records, drained, proofs, begun, warmups].concat())
        });
        let told = [self.told(changes, &before), self.told_of_documents(marks)].concat();
        let is_request = self.by.is_some() && marks.is_empty();
        let replaced = is_request.then(|| Undo::of(&before, &self.state, &touched)).flatten();
        let audited = self.audit.records(&told, replaced.as_ref());
        let kept = kept.map(|extras| [extras, audited.records.clone()].concat());
        let saved = match kept {
            Err(error) if holds => {
                self.failed_to_save(&error);
                self.save(&touched, marks, Vec::new(), on_failure)
            }
            kept => kept.and_then(|extras| self.save(&touched, marks, extras, on_failure)),
        };
        let unsaved = match saved {
            Ok(unsaved) => {
                // What failed before may be possible again.
                if unsaved.is_none() {
                    let retries = [&mut self.expiry_retry, &mut self.later.retry];
                    retries.into_iter().for_each(Retry::hope);
                    if written.failed.is_none() {
                        self.kernel_retry.hope();
                    }
                }
                unsaved
            }
            Err(error) => {
                (self.state, self.zeros, self.ramps) = (before, zeros, cold);
                return Err(self.undo(error.context("saving the change"), changes));
            }
        };
        self.tell_warmups(EventKind::WarmupStarted, &warming_up);
        let cancelled = self.follow_drains(changes);
        if !touched.removed_services.is_empty() || !touched.removed_backends.is_empty() {
            self.drop_proofs();
        }
        self.audit.keep(audited);
        for mark in marks {
            self.problems.remove(&(mark.file.clone(), Some(mark.document.clone())));
        }
        self.tell(told);
        self.tell_listeners(&before, &touched);
        self.tell_health(&before, &touched);
        self.tell_gone(gone);
        Ok(Committed { acknowledged: written.acknowledged, cancelled, unsaved })
    }

    /// Gives the store what it is to keep of a change, and what it misses. Returns why that waits for the disk.
    fn save(
        &mut self,
        touched: &Touched,
        marks: &[AppliedMark],
        extras: Vec<ExtraRecord>,
        on_failure: OnFailure,
    ) -> Result<Option<String>> {
        let mut all = self.unsaved.clone();
        all.extend(extras);
        let extras: Vec<ExtraRecord> = all.into_iter().collect();
        let batch = Batch { touched: std::slice::from_ref(touched), marks, extras: &extras };
        match self.store.commit_batch(&self.state, batch) {
            Ok(()) => {
                self.saved();
                Ok(None)
            }
            Err(error) if on_failure == OnFailure::Undo => Err(error),
            Err(error) => {
                self.unsaved.extend(extras);
                self.failed_to_save(&error);
                Ok(Some(format!("{error:#}")))
            }
        }
    }

    /// The writes that a change would make, in the order in which it would.
    ///
    /// # Errors
    /// As [`Engine::commit`], when a table finds no room.
    pub(super) fn rehearse(
        &self,
        next: &State,
        touched: &Touched,
        changes: &[Change],
    ) -> Result<Vec<MapOp>, ChangeError> {
        let ramps = self.warm_up(next, touched, &clock::stamp()).ramps;
        let planned = self.planned(&Scope::from(touched), next, &ramps, false);
        if !planned.without_room.is_empty() && !without_tables(changes) {
            return Err(without_room(&planned.without_room, next));
        }
        Ok(planned.writes().cloned().collect())
    }

    /// Brings the kernel to the desired state, whatever it holds now. At start, and after a failure.
    ///
    /// # Errors
    /// When the kernel refuses a read or write, or a table finds no room: all else is written.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        let held = self.machine.read().context("reading the tables")?;
        self.programmed = self.programmed.adopt(self.slots, held);
        let known = self.programmed.ids();
        self.state.reserve(&known.backends, &known.services, &known.nodes);
        self.bring(&Scope::everything(&self.programmed, &self.state))
    }

    /// Brings what `scope` names to the desired state.
    ///
    /// # Errors
    /// As [`Engine::reconcile`].
    pub(super) fn bring(&mut self, scope: &Scope) -> Result<()> {
        let nothing = State::new(self.state.limits());
        let goal = Goal {
            before: &nothing,
            after: &self.state,
            ramps_before: &self.ramps,
            ramps: &self.ramps,
            at_leisure: false,
            seed: random(),
        };
        let mut planned = transition(&self.programmed, scope, &goal);
        // All tables are in it.
        planned.stale_nodes.clear();
        self.write(planned, true)?.failed.map_or(Ok(()), Err)
    }

    fn planned(&self, scope: &Scope, next: &State, ramps: &Ramps, at_leisure: bool) -> Transition {
        let goal =
            Goal { before: &self.state, after: next, ramps_before: &self.ramps, ramps, at_leisure, seed: random() };
        transition(&self.programmed, scope, &goal)
    }

    /// Runs a transition. `tables_may_fail`: a service whose table cannot be written is tried again later, and the rest
    /// goes on.
    fn write(&mut self, planned: Transition, tables_may_fail: bool) -> Result<Written> {
        let Transition { steps, without_room, stale, stale_nodes, mut retired } = planned;
        let mut written = Written { acknowledged: Instant::now(), failed: None };
        let closes = |late: &[MapOp]| late.iter().any(|write| matches!(write, MapOp::CloseBackend { .. }));
        let closes_late = steps.iter().any(|step| matches!(step, Step::Serve { late, .. } if closes(late)));
        let mut is_closed = false;
        let mut tables: Vec<(Arc<Service>, Built)> = Vec::new();
        let mut unclosed = None;
        for step in steps {
            match step {
                Step::Close(writes) => {
                    self.run_all(&writes)?;
                    is_closed = !closes_late;
                    written.acknowledged = Instant::now();
                }
                Step::Keep(writes) | Step::Open(writes) | Step::Drain(writes) | Step::Remove(writes) => {
                    self.run_all(&writes)?;
                }
                Step::Serve { service, table, writes, mut late } => {
                    let table = match self.run_all(&writes) {
                        Ok(()) => {
                            self.stale.remove(&service.id);
                            table
                        }
                        Err(error) if tables_may_fail => {
                            written.failed.get_or_insert(error);
                            None
                        }
                        Err(error) => return Err(error),
                    };
                    if table.is_none() {
                        late.retain(Step::is_order);
                    }
                    if let Err(error) = self.run_all(&late) {
                        unclosed.get_or_insert(error);
                    }
                    tables.extend(table.map(|table| (service, table)));
                }
                Step::Measure(writes) => self.measure(&writes),
            }
        }
        for no_room in without_room {
            let message = no_room_for(&no_room, &self.state);
            written.failed.get_or_insert_with(|| anyhow!(message));
        }
        if !is_closed {
            written.acknowledged = Instant::now();
        }
        self.show(tables)?;
        if written.failed.is_some() {
            // The table that stays may name them. The comparison with the kernel that follows finds them.
            retired.backends.clear();
        }
        self.reclaimer.retire(retired);
        self.stale.extend(stale);
        self.stale_nodes.extend(stale_nodes);
        unclosed.map_or(Ok(written), Err)
    }

    /// Runs writes in order; each is noted when the kernel has acknowledged it.
    pub(super) fn run_all(&mut self, writes: &[MapOp]) -> Result<()> {
        let mut regions = Vec::new();
        let mut result = Ok(());
        for write in writes {
            result = self.machine.run(write).with_context(|| format!("writing `{write}`"));
            if result.is_err() {
                break;
            }
            regions.extend(self.programmed.acknowledge(write));
        }
        self.reclaimer.retire(Retired { regions, ..Retired::default() });
        result
    }

    /// Runs writes that steer nothing: one that fails is tried again later.
    fn measure(&mut self, writes: &[MapOp]) {
        for write in writes {
            if let Err(error) = self.run_all(std::slice::from_ref(write)) {
                self.not_measured(&error);
                return;
            }
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
}

/// Whether what was asked for holds without any table: it must not fail for want of one.
pub(super) fn without_tables(changes: &[Change]) -> bool {
    let holds_alone = |change: &Change| {
        matches!(
            change,
            Change::Zero { .. } | Change::Restore { .. } | Change::UpdateHealth { .. } | Change::EndDrains { .. }
        )
    };
    !changes.is_empty() && changes.iter().all(holds_alone)
}

fn without_room(without: &[NoRoom], state: &State) -> ChangeError {
    let named = without.iter().filter_map(|no_room| {
        let name = &state.service_by_id(no_room.service)?.name;
        Some((name.clone(), Refusal::invalid("spec.backends", no_room_for(no_room, state))))
    });
    ChangeError::WithoutRoom(named.collect())
}

fn no_room_for(no_room: &NoRoom, state: &State) -> String {
    let name = state.service_by_id(no_room.service).map(|service| format!(" of {}", service.name));
    format!(
        "SLOTS is full: the table{} needs {} slots in a row. Run the agent with a larger --max-slots (after `sluice \
         uninstall --keep-state`), or give the backends weights with a smaller sum",
        name.unwrap_or_default(),
        no_room.entries
    )
}

/// Where a new service's sequence begins: another place on every host, so that hosts do not march together.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
