//! The steering thread: owner of the desired state, of what the kernel acknowledged, and of the store.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::sync::watch;

use super::{drains::DeferredWrites, workers::reclaim::Reclaimer};
use crate::{
    control::warmup::Ramps,
    engine::client::{Command, Lost},
    host::clock,
    model::{BackendId, Change, NodeId, Service, ServiceId, State, Target},
    plan::{DataPlane, MapOp, Programmed, Retired, service::Built},
    source::{reconcile::Reconciler, store::Store},
    telemetry::Instruments,
    view::{
        events::{EventKind, EventLog},
        operations::Operations,
        published::{ProgrammedBackend, ProgrammedService, Published, Readiness, ZeroProof},
    },
};

/// Tables built in one go between two looks at the requests.
const BUILD_AT_ONCE: usize = 32;
/// How late the end of a zero may be noticed when clocks jump.
const EXPIRY_LATENESS: Duration = Duration::from_secs(1);
/// Time before a write that the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

pub struct Steering<M> {
    pub(super) state: State,
    pub(super) programmed: Programmed,
    pub(super) machine: M,
    pub(super) store: Store,
    pub(super) events: Arc<EventLog>,
    pub(super) instruments: Arc<Instruments>,
    pub(super) keeper: Reclaimer,
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
    /// When to compare with the kernel again after a failure.
    pub(super) retry_at: Option<Instant>,
    /// Whether the restore at work is that of a zero whose time has come.
    pub(super) expiring: bool,
    pub(super) readiness: Readiness,
    published: watch::Sender<Arc<Published>>,
    pub(super) slots: u32,
}

/// Everything that a steering thread begins with.
pub struct SteeringParts<M> {
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
}

impl<M: DataPlane> Steering<M> {
    pub fn new(beginning: SteeringParts<M>) -> (Self, watch::Receiver<Arc<Published>>) {
        let SteeringParts { state, machine, store, events, operations, instruments, begun, commands, slots } =
            beginning;
        let readiness = Readiness::NotReady("the tables are not compared with the configuration yet".into());
        let (published, receiver) = watch::channel(Arc::new(Published {
            state: state.clone(),
            programmed: imbl::OrdMap::new(),
            zeros: imbl::OrdMap::new(),
            ramps: Ramps::default(),
            ready: readiness.clone(),
        }));
        let steering = Self {
            state,
            programmed: Programmed::new(slots),
            machine,
            store,
            events,
            instruments,
            keeper: Reclaimer::new(commands),
            reconciler: Reconciler::default(),
            view: imbl::OrdMap::new(),
            zeros: imbl::OrdMap::new(),
            ramps: Ramps::default(),
            drains: BTreeMap::new(),
            operations,
            later: DeferredWrites::default(),
            begun,
            news: false,
            stale: BTreeSet::new(),
            stale_nodes: Vec::new(),
            retry_at: None,
            expiring: false,
            readiness,
            published,
            slots,
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
                let is_asked = !matches!(command, Command::DrainEnded(_) | Command::KeepOperation(_));
                self.obey(command);
                if is_asked && self.later.gives_way() {
                    self.catch_up();
                }
            }
            Err(RecvTimeoutError::Timeout) if self.later.is_empty() => {}
            Err(RecvTimeoutError::Timeout) => self.catch_up(),
        }
        self.work_at_leisure();
        ControlFlow::Continue(())
    }

    pub(super) fn obey(&mut self, command: Command) {
        match command {
            // Whoever asked may have gone: the work is done all the same.
            Command::Change { change, options, reply } => {
                let _ = reply.send(self.change(std::slice::from_ref(&change), options));
            }
            Command::Batch { changes, options, reply } => {
                let _ = reply.send(self.change(&changes, options));
            }
            Command::Files(events) => self.files(&events),
            Command::GracePeriodElapsed(retired) => self.reuse(retired),
            Command::Lost(lost) => self.correct(&lost),
            Command::DrainEnded(ended) => self.later.ends(*ended),
            Command::KeepOperation(operation) => self.later.moves(&operation.id),
            Command::UpdateHealth(updates) => self.take_in(updates),
            Command::Stop => {}
        }
    }

    /// How long there is nothing to do unless somebody asks.
    fn time_to_wait(&self) -> Duration {
        if !self.stale.is_empty() || !self.stale_nodes.is_empty() || !self.later.is_empty() {
            return Duration::ZERO;
        }
        let retry = self.retry_at.map(|at| at.saturating_duration_since(Instant::now()));
        // Not while something has to be tried again: that is what an expiry waits for then.
        let expiry = self.state.next_expiry().filter(|_| retry.is_none()).map(|at| {
            let left = at.duration_since(Timestamp::now());
            // Soon enough after a sleep of the machine or a step of its clock.
            Duration::try_from(left).unwrap_or(Duration::ZERO).min(EXPIRY_LATENESS)
        });
        let step = self.ramps.next_due().map(|due| Duration::from_nanos(due.saturating_sub(clock::stamp().ns)));
        [retry, expiry, step].into_iter().flatten().min().unwrap_or(Duration::from_secs(3600))
    }

    pub(super) fn work_at_leisure(&mut self) {
        if self.retry_at.is_some_and(|at| at <= Instant::now()) {
            self.recover();
        }
        self.expire();
        self.step_ramps();
        let some: Vec<_> = self.stale().iter().copied().take(BUILD_AT_ONCE).collect();
        if !some.is_empty() {
            if let Err(error) = self.rebuild(&some) {
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
        if self.retry_at.is_some() {
            return;
        }
        for target in self.state.expired(Timestamp::now()) {
            let options = crate::engine::client::Options { dry_run: false, received: Instant::now() };
            let change = Change::Restore { target: target.clone() };
            self.expiring = true;
            let changed = self.change(&[change], options);
            self.expiring = false;
            match changed {
                Ok(_) => self.note(EventKind::ZeroExpired, Some(target.to_string()), "its zero has expired"),
                Err(error) => {
                    // Asked again after the pause that a failure sets.
                    tracing::warn!(%target, %error, "cannot end an expired zero");
                    self.retry_at.get_or_insert_with(|| Instant::now() + RETRY);
                    return;
                }
            }
        }
    }

    /// Makes the kernel hold what is desired, whatever it holds now. At start, and after a failure.
    pub(super) fn reconcile(&mut self) -> Result<()> {
        let held = self.machine.read().context("reading the tables")?;
        self.programmed = self.programmed.adopt(self.slots, held);
        let known = self.programmed.ids();
        self.state.reserve(&known.backends, &known.services, &known.nodes);
        let all = self.state.services().flat_map(|service| service.backends.iter().map(move |b| (service, b)));
        let draining = all.filter_map(|(service, b)| self.programmed.plan_leaving(&self.state, service, b));
        // As with a change: what is about to be opened is closed no more.
        let (staying, draining): (Vec<_>, Vec<_>) = draining.partition(MapOp::lets_stay);
        self.run_all(&staying)?;
        let nodes: Vec<_> = self.state.nodes().filter_map(|node| self.programmed.plan_node(node)).collect();
        self.run_all(&nodes)?;
        let services: Vec<_> = self.state.services().map(|service| service.id).collect();
        self.rebuild(&services)?;
        self.run_all(&draining)?;
        let (unknown, retired) = self.programmed.plan_unknown(&self.state);
        self.run_all(&unknown)?;
        self.keeper.retire(retired);
        Ok(())
    }

    /// After a failed write: back to the desired state, from what the kernel really holds.
    pub(super) fn recover(&mut self) {
        self.retry_at = None;
        match self.reconcile() {
            Ok(()) => self.readiness = Readiness::Ready,
            Err(error) => self.failed(&error),
        }
        self.publish();
    }

    pub(super) fn failed(&mut self, error: &anyhow::Error) {
        tracing::error!("the tables could not be written: {error:#}");
        self.instruments.kernel_failed();
        self.note(EventKind::KernelFailed, None, format!("{error:#}; it is tried again"));
        self.readiness = Readiness::NotReady(format!("{error:#}"));
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// Builds, writes and publishes the tables of some services.
    pub(super) fn rebuild(&mut self, services: &[ServiceId]) -> Result<()> {
        let mut built = Vec::with_capacity(services.len());
        let mut result = Ok(());
        for id in services {
            self.stale.remove(id);
            let Some(service) = self.state.service_by_id(*id).cloned() else { continue };
            // One that cannot be written, for want of slots, is no reason to leave the others as they are.
            match self.program_service(&self.state.clone(), &self.ramps.clone(), &service) {
                Ok(table) => built.push((service, table)),
                Err(error) => result = Err(error),
            }
        }
        self.show(built)?;
        result
    }

    /// Writes one service's table and frontends.
    pub(super) fn program_service(&mut self, state: &State, ramps: &Ramps, service: &Service) -> Result<Built> {
        let (ops, built) = self.programmed.plan_service(state, ramps, service, random())?;
        self.run_all(&ops)?;
        self.programmed.settle(service, &built);
        Ok(built)
    }

    /// Runs writes in order; each is noted when the kernel has acknowledged it.
    pub(super) fn run_all(&mut self, ops: &[MapOp]) -> Result<()> {
        let mut regions = Vec::new();
        let mut result = Ok(());
        for op in ops {
            result = self.machine.run(op).with_context(|| format!("writing `{op}`"));
            if result.is_err() {
                break;
            }
            regions.extend(self.programmed.acknowledge(op));
        }
        self.keeper.retire(Retired { regions, ..Retired::default() });
        result
    }

    /// Publishes tables that are in force now; their observed shares begin here.
    pub(super) fn show(&mut self, built: Vec<(Arc<Service>, Built)>) -> Result<()> {
        let ids: Vec<BackendId> =
            built.iter().flat_map(|(service, _)| service.backends.iter().map(|backend| backend.id)).collect();
        let mut counters = self.machine.counters(&ids)?.into_iter();
        let since = Timestamp::now();
        for (service, table) in built {
            let picked: Vec<u64> = counters.by_ref().take(service.backends.len()).map(|c| c.picked).collect();
            let backends = service.backends.iter().zip(&table.backends).zip(picked);
            let shown = ProgrammedService {
                generation: service.generation,
                since,
                length: table.length,
                share_error: table.share_error,
                spilled: table.spilled,
                backends: backends
                    .map(|((backend, built), picked_before)| ProgrammedBackend {
                        id: backend.id,
                        effective_weight: built.effective_weight,
                        desired_share: built.desired_share,
                        programmed_share: built.programmed_share,
                        picked_before,
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
            ready: self.readiness.clone(),
        })
    }

    pub(super) fn note(&self, kind: EventKind, object: Option<String>, message: impl Into<String>) {
        self.events.record(kind, object, message);
    }

    /// Gives back what no program can see any more. Backends wait a while longer, so that a connect() that was on its
    /// way has sent its SYN, and until their last connection has ended.
    fn reuse(&mut self, retired: Retired) {
        let Retired { regions, services, backends, nodes, waited } = retired;
        regions.into_iter().for_each(|region| self.programmed.give_back(region));
        let services: Vec<_> = services.into_iter().filter(|id| self.state.service_by_id(*id).is_none()).collect();
        let backends: Vec<_> = backends.into_iter().filter(|id| self.state.backend(*id).is_none()).collect();
        let (used, free) = if waited {
            match self.split_by_use(&backends) {
                Ok(split) => split,
                Err(error) => return self.failed(&error),
            }
        } else {
            (backends, Vec::new())
        };
        let mut ops: Vec<_> = services.iter().map(|id| MapOp::ForgetService { service: id.0 }).collect();
        ops.extend(free.iter().map(|id| MapOp::ForgetBackend { backend: id.0 }));
        if let Err(error) = self.run_all(&ops) {
            return self.failed(&error);
        }
        self.state.release(&free, &services, &nodes);
        self.keeper.wait_for(used);
    }

    /// Backends that still have connections, and those that have none.
    fn split_by_use(&self, ids: &[BackendId]) -> Result<(Vec<BackendId>, Vec<BackendId>)> {
        let counters: HashMap<BackendId, bool> = ids
            .iter()
            .zip(self.machine.counters(ids)?)
            .map(|(id, counters)| (*id, crate::kernel::gauges::open(&counters) != 0))
            .collect();
        Ok(ids.iter().partition(|id| counters.get(id).copied().unwrap_or(false)))
    }

    /// Adds connections whose end nobody saw, as a tally found them.
    fn correct(&mut self, lost: &[Lost]) {
        let ops: Vec<_> = lost
            .iter()
            .map(|lost| MapOp::AddLost {
                backend: lost.backend.0,
                established: lost.established,
                connecting: lost.connecting,
            })
            .collect();
        if let Err(error) = self.run_all(&ops) {
            self.failed(&error);
        }
    }
}

/// Where a new service's sequence begins: another place on every host, so that hosts do not march together.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish()
}
