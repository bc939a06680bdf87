//! Probes backends again and again: follows the published state, begins each probe in its time, and tells the engine what
//! has changed, many updates at a time and each of them once. Sleeps while nothing is probed.

mod follow;
#[cfg(test)]
mod tests;
mod timers;

use std::{
    collections::HashMap,
    sync::{Arc, mpsc::Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::changes::ServiceChanges;
use crate::{
    control::{
        StateMachine,
        readiness::{ReadinessEvent, ReadinessTracker},
        timers::Timers,
    },
    engine::client::Command,
    host::clock,
    model::{BackendId, HealthReport, HealthUpdate, ReadinessKind},
    probe::{self, Begun, Found, Means, Subject},
    settings::Probing,
    telemetry::Instruments,
    view::published::Published,
};
use follow::Lease;
use timers::{Lane, ProbeDue, Wake, about};

/// Time for which updates are gathered, and the same while many come: each change is saved, and whoever waits for a
/// probe has waited for seconds.
const GATHER: Duration = Duration::from_millis(50);
const GATHER_MORE: Duration = Duration::from_millis(250);
/// Updates come in numbers when the last ones were sent so short a time ago.
const BUSY: Duration = Duration::from_secs(1);
/// Least time between two looks at the timers: what comes due meanwhile is begun in one go.
const TICK: Duration = Duration::from_millis(5);
/// Most commands at a time, whatever else is under way: each is a process.
const COMMANDS: usize = 32;

pub struct HealthScheduler {
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub instruments: Arc<Instruments>,
    pub probing: Probing,
    /// SO_MARK of the connections.
    pub mark: u32,
}

/// Starts the thread, which ends with the engine.
///
/// # Errors
/// When there is no thread or no epoll to be had.
pub fn spawn(scheduler: HealthScheduler) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("starting to probe")?;
    let run = move || {
        let (results, ended) = mpsc::unbounded_channel();
        runtime.block_on(Scheduler::new(scheduler, results).run(ended));
    };
    thread::Builder::new().name("prober".into()).spawn(run).context("starting the thread that probes")?;
    Ok(())
}

struct Scheduler {
    published: watch::Receiver<Arc<Published>>,
    commands: Sender<Command>,
    instruments: Arc<Instruments>,
    probing: Probing,
    means: Arc<Means>,
    changes: ServiceChanges,
    probed: HashMap<BackendId, ProbedBackend>,
    /// Backends with a report that has to be renewed.
    leases: HashMap<BackendId, Lease>,
    /// Backends that others probe now, and whose reason this agent has cleared: when that was asked for.
    released: HashMap<BackendId, Option<Timestamp>>,
    timers: Timers<Instant, ProbeDue>,
    connections: Lane,
    hooks: Lane,
    results: mpsc::UnboundedSender<EndedProbe>,
    outbox: Vec<HealthUpdate>,
    flush_at: Option<Instant>,
    flushed: Option<Instant>,
    /// When the published state may be looked at again.
    follow_at: Instant,
    /// When the timers were looked at last.
    looked: Instant,
    epoch: u64,
}

/// A backend that this agent probes.
struct ProbedBackend {
    /// Timers and probes of another epoch are of another configuration.
    epoch: u64,
    /// When a restore asked last for a success newer than itself.
    asked: Option<Timestamp>,
    subject: Arc<Subject>,
    tracker: ReadinessTracker,
    /// Whether a timer waits for the end of its delay.
    delaying: bool,
}

/// A probe that is over.
struct EndedProbe {
    backend: BackendId,
    epoch: u64,
    kind: ReadinessKind,
    started: Instant,
    found: Found,
}

impl Scheduler {
    fn new(scheduler: HealthScheduler, results: mpsc::UnboundedSender<EndedProbe>) -> Self {
        let HealthScheduler { published, commands, instruments, probing, mark } = scheduler;
        let means = Arc::new(Means { mark, hooks: probing.hooks.clone() });
        Self {
            published,
            commands,
            instruments,
            means,
            changes: ServiceChanges::default(),
            probed: HashMap::new(),
            leases: HashMap::new(),
            released: HashMap::new(),
            timers: Timers::default(),
            connections: Lane::new(probing.in_flight),
            hooks: Lane::new(probing.in_flight.min(COMMANDS)),
            probing,
            results,
            outbox: Vec::new(),
            flush_at: None,
            flushed: None,
            follow_at: Instant::now(),
            looked: Instant::now(),
            epoch: 0,
        }
    }

    async fn run(mut self, mut ended: mpsc::UnboundedReceiver<EndedProbe>) {
        self.published.mark_changed();
        loop {
            let now = Instant::now();
            let follows = now >= self.follow_at;
            let timer = self.timers.next().map(|at| at.max(self.looked + TICK));
            let wake = [timer, self.flush_at, (!follows).then_some(self.follow_at)].into_iter().flatten().min();
            tokio::select! {
                changed = self.published.changed(), if follows => match changed {
                    Ok(()) => self.follow(),
                    Err(_) => return,
                },
                Some(end) = ended.recv() => {
                    self.ended(end);
                    while let Ok(end) = ended.try_recv() {
                        self.ended(end);
                    }
                }
                () = sleep_until(wake.unwrap_or(now).into()), if wake.is_some() => {}
            }
            if self.work().is_err() {
                return;
            }
        }
    }

    /// Does what is due. Fails when the agent stops.
    fn work(&mut self) -> Result<(), ()> {
        let now = Instant::now();
        if now >= self.looked + TICK {
            self.looked = now;
            while let Some((_, ProbeDue { backend, epoch, wake })) = self.timers.take_due(now) {
                match wake {
                    Wake::Lease => self.check_lease(backend, epoch),
                    Wake::Probe => self.start(backend, epoch),
                    Wake::Delay => self.end_delay(backend, epoch),
                }
            }
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            self.flushed = Some(now);
            let updates = std::mem::take(&mut self.outbox);
            self.commands.send(Command::UpdateHealth(updates)).map_err(drop)?;
        }
        Ok(())
    }

    /// Begins a probe, or has it wait for its turn.
    fn start(&mut self, backend: BackendId, epoch: u64) {
        let Some(probed) = self.probed.get(&backend).filter(|probed| probed.epoch == epoch) else { return };
        let subject = probed.subject.clone();
        let kind = subject.readiness.kind;
        if !self.lane(kind).has_room() {
            self.lane(kind).wait(backend, epoch);
            self.instruments.late_probe();
            return;
        }
        let started = Instant::now();
        match probe::begin(&subject, &self.means) {
            Begun::Done(found) => self.found(EndedProbe { backend, epoch, kind, started, found }),
            Begun::Goes(probe) => {
                self.lane(kind).enter();
                let results = self.results.clone();
                tokio::spawn(async move {
                    let found = probe.await;
                    // Nobody listens once the agent stops.
                    let _ = results.send(EndedProbe { backend, epoch, kind, started, found });
                });
            }
        }
    }

    fn ended(&mut self, end: EndedProbe) {
        let kind = end.kind;
        self.lane(kind).leave();
        self.found(end);
        while let Some((backend, epoch)) = self.lane(kind).next() {
            self.start(backend, epoch);
        }
    }

    fn found(&mut self, end: EndedProbe) {
        let EndedProbe { backend, epoch, kind, started, found } = end;
        self.instruments.probed(kind.name(), found.is_ok(), started.elapsed());
        let Some(probed) = self.probed.get(&backend).filter(|probed| probed.epoch == epoch) else { return };
        let period = probed.subject.readiness.period.duration();
        let next = (started + about(period)).max(Instant::now());
        self.timers.add(next, ProbeDue { backend, epoch, wake: Wake::Probe });
        self.track(backend, ReadinessEvent::Probed(found));
    }

    fn end_delay(&mut self, backend: BackendId, epoch: u64) {
        let Some(probed) = self.probed.get_mut(&backend).filter(|probed| probed.epoch == epoch) else { return };
        probed.delaying = false;
        self.track(backend, ReadinessEvent::Timeout);
    }

    /// Hands an event to the tracker of a backend that is probed, and does what follows.
    fn track(&mut self, backend: BackendId, event: ReadinessEvent) {
        let Some(probed) = self.probed.get_mut(&backend) else { return };
        let now = clock::stamp();
        probed.tracker.handle(event, now);
        if let Some(left) = probed.tracker.time_left(now).filter(|_| !probed.delaying) {
            probed.delaying = true;
            // The clock of the delay goes on while the host sleeps, that of the timers does not: never too early.
            let due = ProbeDue { backend, epoch: probed.epoch, wake: Wake::Delay };
            self.timers.add(Instant::now() + left.max(TICK), due);
        }
        let asked = probed.asked;
        for reason in probed.tracker.actions() {
            self.send(HealthUpdate { backend, report: HealthReport::Probe { reason, asked } });
        }
    }

    fn send(&mut self, update: HealthUpdate) {
        let now = Instant::now();
        let is_busy = self.flushed.is_some_and(|flushed| now.duration_since(flushed) < BUSY);
        self.flush_at.get_or_insert(now + if is_busy { GATHER_MORE } else { GATHER });
        self.outbox.push(update);
    }

    fn lane(&mut self, kind: ReadinessKind) -> &mut Lane {
        match kind {
            ReadinessKind::Exec => &mut self.hooks,
            ReadinessKind::Tcp | ReadinessKind::Http | ReadinessKind::Report | ReadinessKind::None => {
                &mut self.connections
            }
        }
    }
}
