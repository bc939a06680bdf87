//! The engine and its loop: owner of the desired state, of what the kernel acknowledged, and of the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::Result;
use jiff::Timestamp;
use sluice_common::verdict::Program;
use tokio::sync::watch;

use super::{
    audit::Audit,
    brake::Braking,
    client::{ChangeError, Command, Options},
    drains::DeferredWrites,
    retry::Retry,
    workers::reclaim::Reclaimer,
};
use crate::{
    control::{StateMachine, attachment::Missing, warmup::Ramps},
    host::clock,
    model::{BackendId, Change, NodeId, Service, ServiceId, State, Target, document::DocumentKey},
    plan::{DataPlane, Programmed, Scope, service::Built},
    settings::Brake,
    source::{reconcile::Reconciler, store::Store},
    telemetry::Instruments,
    view::{
        events::{EventKind, EventLog},
        history::History,
        operations::Operations,
        published::{AgentReadiness, ProgrammedBackend, ProgrammedService, Published, ZeroProof},
        share::WindowPicks,
    },
};

/// Tables built in one go between two looks at the requests.
const BUILD_AT_ONCE: usize = 32;
/// How late the end of a zero may be noticed when clocks jump.
const EXPIRY_LATENESS: Duration = Duration::from_secs(1);

pub struct Engine<M> {
    pub(super) state: State,
    pub(super) programmed: Programmed,
    pub(super) machine: M,
    pub(super) store: Store,
    pub(super) events: Arc<EventLog>,
    pub(super) instruments: Arc<Instruments>,
    pub(super) reclaimer: Reclaimer,
    pub(super) reconciler: Reconciler,
    /// What readers see of the tables.
    pub(super) view: imbl::OrdMap<ServiceId, Arc<ProgrammedService>>,
    pub(super) zeros: imbl::OrdMap<Target, Arc<ZeroProof>>,
    /// Backends that are warming up.
    pub(super) ramps: Ramps,
    /// Drains that last, with their operations.
    pub(super) drains: BTreeMap<Target, String>,
    pub(super) operations: Arc<Operations>,
    pub(super) later: DeferredWrites,
    /// To the thread that carries drains out, and whether there is news for it.
    pub(super) begun: Sender<()>,
    pub(super) news: bool,
    /// Services whose tables are to be built anew, at leisure.
    pub(super) stale: BTreeSet<ServiceId>,
    /// Nodes whose services are stale, and not yet among them: a zero's answer waits for what comes before it.
    pub(super) stale_nodes: Vec<NodeId>,
    /// Of the comparison with the kernel: pending while the tables are not what they should be.
    pub(super) kernel_retry: Retry,
    /// Of the store: pending while it misses something.
    pub(super) store_retry: Retry,
    pub(super) measure_retry: Retry,
    pub(super) expiry_retry: Retry,
    /// Of documents that were refused: pending when they met a fault.
    pub(super) documents_retry: Retry,
    /// What the store could not keep of what holds all the same: kept with the next try.
    pub(super) unsaved: BTreeMap<String, Option<Vec<u8>>>,
    /// What the store keeps of zeros that failed and that the kernel may hold.
    pub(super) undone: BTreeSet<Target>,
    /// Files and documents that are refused, with the reasons.
    pub(super) problems: imbl::OrdMap<(PathBuf, Option<DocumentKey>), String>,
    pub(super) brake: Braking,
    /// Whether services are made of what the kernel steers when the store has none.
    pub(super) adopts: bool,
    /// Files of which a look could not be taken in, with the reason.
    pub(super) unapplied: BTreeMap<PathBuf, String>,
    /// Who asks for the change at work, if it is not the agent itself.
    pub(super) by: Option<Arc<str>>,
    pub(super) audit: Audit,
    /// Whether the restore at work is that of a zero whose time has come.
    pub(super) expiring: bool,
    pub(super) readiness: AgentReadiness,
    /// Of what should be attached and pinned.
    pub(super) missing: Missing,
    /// Programs that were not attached when this agent came.
    pub(super) absent: Vec<Program>,
    published: watch::Sender<Arc<Published>>,
    pub(super) slots: u32,
}

/// Everything that an engine begins with.
pub struct EngineParts<M> {
    pub state: State,
    pub machine: M,
    pub store: Store,
    pub events: Arc<EventLog>,
    pub operations: Arc<Operations>,
    pub instruments: Arc<Instruments>,
    /// To the thread that carries drains out.
    pub begun: Sender<()>,
    /// To itself, for the threads that wait on its behalf.
    pub commands: Sender<Command>,
    /// Size of SLOTS.
    pub slots: u32,
    /// Programs that were not attached when this agent came.
    pub absent: Vec<Program>,
    pub brake: Brake,
}

impl<M: DataPlane> Engine<M> {
    pub fn new(beginning: EngineParts<M>) -> (Self, watch::Receiver<Arc<Published>>) {
        let EngineParts { state, machine, store, events, operations, instruments, .. } = beginning;
        let readiness = AgentReadiness::NotReady("the tables are not compared with the configuration yet".into());
        let (published, receiver) = watch::channel(Arc::new(Published {
            state: state.clone(),
            programmed: imbl::OrdMap::new(),
            zeros: imbl::OrdMap::new(),
            ramps: Ramps::default(),
            ready: readiness.clone(),
            missing: Missing::default(),
            problems: imbl::OrdMap::new(),
            history: History::default(),
        }));
        let steering = Self {
            state,
            programmed: Programmed::new(beginning.slots),
            machine,
            store,
            events,
            instruments,
            reclaimer: Reclaimer::new(beginning.commands),
            reconciler: Reconciler::default(),
            view: imbl::OrdMap::new(),
            zeros: imbl::OrdMap::new(),
            ramps: Ramps::default(),
            drains: BTreeMap::new(),
            operations,
            later: DeferredWrites::default(),
            begun: beginning.begun,
            news: false,
            stale: BTreeSet::new(),
            stale_nodes: Vec::new(),
            kernel_retry: Retry::default(),
            store_retry: Retry::default(),
            measure_retry: Retry::default(),
            expiry_retry: Retry::default(),
            documents_retry: Retry::default(),
            unsaved: BTreeMap::new(),
            undone: BTreeSet::new(),
            problems: imbl::OrdMap::new(),
            brake: Braking::new(beginning.brake),
            adopts: beginning.brake.adopt,
            unapplied: BTreeMap::new(),
            by: None,
            audit: Audit::default(),
            expiring: false,
            readiness,
            missing: Missing::default(),
            absent: beginning.absent,
            published,
            slots: beginning.slots,
        };
        (steering, receiver)
    }

    /// Serves until a [`Command::Stop`] or until nobody can ask any more.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            if self.turn(commands).is_break() {
                return;
            }
        }
    }

    /// Serves one request, or else does what waits for a moment without one.
    pub(super) fn turn(&mut self, commands: &Receiver<Command>) -> ControlFlow<()> {
        match commands.recv_timeout(self.time_to_wait()) {
            Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            Ok(command) => {
                let is_asked = !matches!(command, Command::EndDrain { .. } | Command::KeepOperation(_));
                self.obey(command);
                if is_asked && self.later.gives_way() {
                    self.catch_up();
                }
            }
            Err(RecvTimeoutError::Timeout) if self.later.is_due(Instant::now()) => self.catch_up(),
            Err(RecvTimeoutError::Timeout) => {}
        }
        self.work_at_leisure();
        ControlFlow::Continue(())
    }

    pub(super) fn obey(&mut self, command: Command) {
        match command {
            // Whoever asked has left before its turn: it believes that nothing was done.
            Command::Change { reply, .. } if reply.is_closed() => {}
            Command::Undo { reply, .. } if reply.is_closed() => {}
            Command::Change { changes, options, reply } => {
                self.by.clone_from(&options.by);
                drop(reply.send(self.change(&changes, options)));
                self.by = None;
            }
            Command::Undo { change, options, reply } => {
                self.by = options.by.as_ref().map(|who| format!("{who}, to undo change {change}").into());
                drop(reply.send(self.undo_change(change, options)));
                self.by = None;
            }
            Command::Files { events, reply } => {
                let _ = reply.send(self.documents(&events));
            }
            Command::GracePeriodElapsed(retired) => self.reuse(retired),
            Command::Lost(lost) => self.correct(&lost),
            Command::EndDrain { ended, reply } => self.later.ends(*ended, reply),
            Command::KeepOperation(operation) => self.later.moves(&operation.id),
            Command::UpdateHealth(updates) => self.update_health(updates),
            Command::Attachment(news) => self.attachment(*news),
            Command::AcceptShrink { reply } => drop(reply.send(self.accept_shrink())),
            Command::Stop => {}
        }
    }

    /// How long there is nothing to do unless somebody asks.
    fn time_to_wait(&self) -> Duration {
        let now = Instant::now();
        if !self.stale.is_empty() || !self.stale_nodes.is_empty() || self.later.is_due(now) {
            return Duration::ZERO;
        }
        let until = |at: Instant| at.saturating_duration_since(now);
        let retries = [&self.kernel_retry, &self.store_retry, &self.measure_retry, &self.documents_retry];
        let retries = retries.into_iter().map(Retry::at).chain([self.later.put_off()]);
        let expiry = match self.expiry_retry.at() {
            Some(at) => Some(until(at)),
            None => self.state.next_expiry().map(|at| {
                let left = at.duration_since(Timestamp::now());
                // Soon enough after a sleep of the machine or a step of its clock.
                Duration::try_from(left).unwrap_or(Duration::ZERO).min(EXPIRY_LATENESS)
            }),
        };
        let step = self.ramps.time_left(clock::stamp());
        let times = retries.flatten().map(until).chain(expiry).chain(step);
        times.min().unwrap_or(Duration::from_secs(3600))
    }

    pub(super) fn work_at_leisure(&mut self) {
        let now = Instant::now();
        if self.kernel_retry.is_due(now) || self.store_retry.is_due(now) {
            self.recover();
            self.retry_documents();
            self.publish();
        }
        if self.documents_retry.is_due(now) {
            self.retry_documents();
            self.publish();
        }
        if self.measure_retry.is_due(now) {
            self.measure_again();
        }
        self.expire();
        self.step_ramps();
        let some: Vec<_> = self.stale().iter().copied().take(BUILD_AT_ONCE).collect();
        if !some.is_empty() {
            for service in &some {
                self.stale.remove(service);
            }
            if let Err(error) = self.bring(&Scope::tables(&some)) {
                self.failed(&error);
            }
            self.publish();
        }
    }

    /// Services whose tables are to be built anew.
    pub(super) fn stale(&mut self) -> &BTreeSet<ServiceId> {
        for node in std::mem::take(&mut self.stale_nodes) {
            self.stale.extend(self.state.node_services(node).map(|service| service.id));
        }
        &self.stale
    }

    /// Ends the zeros whose time has come.
    fn expire(&mut self) {
        if self.expiry_retry.at().is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.expiry_retry.begins();
        for target in self.state.expired(Timestamp::now()) {
            let change = Change::Restore { target: target.clone() };
            self.expiring = true;
            let changed = self.change(&[change], Options::now());
            self.expiring = false;
            match changed {
                Ok(_) => self.note(EventKind::ZeroExpired, Some(target.to_string()), "its zero has expired"),
                Err(error) => {
                    tracing::warn!(%target, %error, "cannot end an expired zero, and it is tried again");
                    self.expiry_retry.failed();
                    if matches!(error, ChangeError::Failed(_)) {
                        return;
                    }
                }
            }
        }
        if !self.expiry_retry.is_pending() {
            self.expiry_retry.succeeded();
        }
    }

    /// Forgets the table of a service that is gone.
    pub(super) fn forget_table(&mut self, service: ServiceId) {
        self.view.remove(&service);
        self.stale.remove(&service);
    }

    /// Publishes tables that are in force now. Their observed shares begin here, or go on where the same generation of a
    /// service has the same backends open as before, as in a warm-up.
    pub(super) fn show(&mut self, built: Vec<(Arc<Service>, Built)>) -> Result<()> {
        let ids: Vec<BackendId> =
            built.iter().flat_map(|(service, _)| service.backends.iter().map(|backend| backend.id)).collect();
        let mut counters = self.machine.counters(&ids)?.into_iter();
        let since = Timestamp::now();
        for (service, table) in built {
            let picked: Vec<u64> = counters.by_ref().take(service.backends.len()).map(|c| c.picked).collect();
            let earlier = self.view.get(&service.id).and_then(|before| before.picks_before(&service, &table, &picked));
            let earlier = earlier.into_iter().flatten().chain(iter::repeat(WindowPicks::default()));
            let backends = service.backends.iter().zip(&table.backends).zip(picked).zip(earlier);
            let shown = ProgrammedService {
                generation: service.generation,
                since,
                length: table.length,
                share_error: table.share_error,
                spilled: table.spilled,
                backends: backends
                    .map(|(((backend, built), picked_before), earlier)| ProgrammedBackend {
                        id: backend.id,
                        effective_weight: built.effective_weight,
                        desired_share: built.desired_share,
                        programmed_share: built.programmed_share,
                        picked_before,
                        earlier,
                    })
                    .collect(),
            };
            self.view.insert(service.id, Arc::new(shown));
        }
        Ok(())
    }

    pub(super) fn publish(&mut self) -> Arc<Published> {
        let published = self.as_published(self.state.clone());
        self.published.send_replace(published.clone());
        self.wake_drainer();
        published
    }

    pub(super) fn as_published(&self, state: State) -> Arc<Published> {
        Arc::new(Published {
            state,
            programmed: self.view.clone(),
            zeros: self.zeros.clone(),
            ramps: self.ramps.clone(),
            ready: self.ready(),
            missing: self.missing.clone(),
            problems: self.problems(),
            history: self.audit.history().clone(),
        })
    }

    /// What is refused, and what waits.
    fn problems(&self) -> imbl::OrdMap<(PathBuf, Option<DocumentKey>), String> {
        let mut problems = self.problems.clone();
        problems.extend(self.unapplied.iter().map(|(file, why)| ((file.clone(), None), why.clone())));
        problems
    }

    /// Whether all that is desired is in force, as far as the tables, what is attached and the watched files say.
    fn ready(&self) -> AgentReadiness {
        if self.readiness == AgentReadiness::Ready && !self.missing.is_empty() {
            return AgentReadiness::NotReady(self.missing.to_string());
        }
        match (&self.readiness, self.unapplied.first_key_value()) {
            (AgentReadiness::Ready, Some((file, why))) => {
                AgentReadiness::NotReady(format!("{} is not in force yet: {why}", file.display()))
            }
            (readiness, _) => readiness.clone(),
        }
    }

    pub(super) fn note(&self, kind: EventKind, object: Option<String>, message: impl Into<String>) {
        self.events.record(kind, object, message);
    }
}
