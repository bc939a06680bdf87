//! Looks at backends again and again: follows the published state, begins each probe in its time, and tells the
//! steering thread what has changed, many updates at a time. Sleeps while nothing is probed.

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
use tokio::{
    runtime,
    sync::{mpsc, watch},
    time::sleep_until,
};

use crate::{
    control::readiness::{ReadinessTracker, Told},
    engine::client::Command,
    host::clock,
    model::{BackendId, HealthReport, HealthUpdate, ReadinessKind, Report, Service, ServiceId},
    probe::{self, Begun, Found, Means, Subject},
    settings::Probing,
    telemetry::Instruments,
    view::published::Published,
};
use timers::{Jitter, Lane, Timer, Timers, Wake};

/// Time for which updates are gathered, and the same while many come: each change is saved, and whoever waits for a
/// probe has waited for seconds.
const GATHER: Duration = Duration::from_millis(50);
const GATHER_MORE: Duration = Duration::from_millis(250);
/// Findings come in numbers when the last change was so short a time ago.
const BUSY: Duration = Duration::from_secs(1);
/// Time after which a update that does not show is told again: it could not be saved.
const CONFIRM: Duration = Duration::from_secs(5);
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

/// Starts the thread, which ends with the steering thread.
///
/// # Errors
/// When there is no thread or no epoll to be had.
pub fn spawn(prober: HealthScheduler) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build().context("starting to probe")?;
    let run = move || {
        let (results, ended) = mpsc::unbounded_channel();
        runtime.block_on(Scheduler::new(prober, results).run(ended));
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
    /// As they were when they were last followed.
    services: HashMap<ServiceId, Arc<Service>>,
    probed: HashMap<BackendId, ProbedBackend>,
    reviews: HashMap<BackendId, Review>,
    timers: Timers,
    connections: Lane,
    hooks: Lane,
    results: mpsc::UnboundedSender<Ended>,
    outbox: Vec<HealthUpdate>,
    flush_at: Option<Instant>,
    flushed: Option<Instant>,
    /// Not before then is the published state looked at again.
    follow_at: Instant,
    looked: Instant,
    epoch: u64,
    jitter: Jitter,
}

/// A backend that this agent probes.
struct ProbedBackend {
    /// Timers and probes of another one are of another configuration.
    epoch: u64,
    subject: Arc<Subject>,
    machine: ReadinessTracker,
    /// A timer waits for it.
    delaying: bool,
    confirming: bool,
    /// The published state says what was told.
    shown: bool,
}

/// What is to be said of a backend without a probe.
struct Review {
    /// That of its timer.
    epoch: u64,
    /// One that has to be renewed.
    report: Option<Report>,
    /// Others probe it, and what this agent has said of it is to be cleared.
    release: bool,
}

/// A probe that is over.
struct Ended {
    backend: BackendId,
    epoch: u64,
    kind: ReadinessKind,
    started: Instant,
    found: Found,
}

impl Scheduler {
    fn new(prober: HealthScheduler, results: mpsc::UnboundedSender<Ended>) -> Self {
        let HealthScheduler { published, commands, instruments, probing, mark } = prober;
        let means = Arc::new(Means { mark, hooks: probing.hooks.clone() });
        Self {
            published,
            commands,
            instruments,
            means,
            services: HashMap::new(),
            probed: HashMap::new(),
            reviews: HashMap::new(),
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
            jitter: Jitter::new(),
        }
    }

    async fn run(mut self, mut ended: mpsc::UnboundedReceiver<Ended>) {
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
            while let Some(Timer { backend, epoch, wake, .. }) = self.timers.due(now) {
                match wake {
                    Wake::Review => self.review(backend, epoch),
                    Wake::Probe => self.start(backend, epoch),
                    Wake::Delay => self.end_delay(backend, epoch),
                    Wake::Confirm => self.confirm(backend, epoch),
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
            Begun::Done(found) => self.found(Ended { backend, epoch, kind, started, found }),
            Begun::Goes(probe) => {
                self.lane(kind).enter();
                let results = self.results.clone();
                tokio::spawn(async move {
                    let found = probe.await;
                    // Nobody listens once the agent stops.
                    let _ = results.send(Ended { backend, epoch, kind, started, found });
                });
            }
        }
    }

    fn ended(&mut self, end: Ended) {
        let kind = end.kind;
        self.lane(kind).leave();
        self.found(end);
        while let Some((backend, epoch)) = self.lane(kind).next() {
            self.start(backend, epoch);
        }
    }

    fn found(&mut self, end: Ended) {
        let Ended { backend, epoch, kind, started, found } = end;
        self.instruments.probed(kind.name(), found.is_ok(), started.elapsed());
        let Some(probed) = self.probed.get_mut(&backend).filter(|probed| probed.epoch == epoch) else { return };
        let now = clock::stamp();
        if let Err(failure) = &found {
            let Subject { service, backend, .. } = &*probed.subject;
            tracing::debug!(%service, %backend, kind = kind.name(), "a probe failed: {}", failure.message);
        }
        let told = probed.machine.saw(found, now);
        let period = probed.subject.readiness.period.duration();
        let next = (started + self.jitter.about(period)).max(Instant::now());
        self.timers.add(Timer { at: next, backend, epoch, wake: Wake::Probe });
        if let Some(left) = probed.machine.due(now).filter(|_| !probed.delaying) {
            probed.delaying = true;
            self.timers.add(Timer { at: Instant::now() + left, backend, epoch, wake: Wake::Delay });
        }
        self.tell(backend, told);
    }

    fn end_delay(&mut self, backend: BackendId, epoch: u64) {
        let Some(probed) = self.probed.get_mut(&backend).filter(|probed| probed.epoch == epoch) else { return };
        let now = clock::stamp();
        let told = probed.machine.look(now);
        let left = probed.machine.due(now);
        probed.delaying = left.is_some();
        if let Some(left) = left {
            // The clock of the delay goes on while the host sleeps, that of the timers does not: never too early.
            self.timers.add(Timer { at: Instant::now() + left.max(TICK), backend, epoch, wake: Wake::Delay });
        }
        self.tell(backend, told);
    }

    /// What was told and does not show is told again.
    fn confirm(&mut self, backend: BackendId, epoch: u64) {
        let Some(probed) = self.probed.get_mut(&backend).filter(|probed| probed.epoch == epoch) else { return };
        probed.confirming = false;
        if !probed.shown {
            let told = probed.machine.told().cloned();
            self.tell(backend, Some(told));
        }
    }

    fn tell(&mut self, backend: BackendId, told: Told) {
        let Some(told) = told else { return };
        self.send(HealthUpdate { backend, report: HealthReport::Probe(told) });
        let Some(probed) = self.probed.get_mut(&backend) else { return };
        probed.shown = false;
        if !probed.confirming {
            probed.confirming = true;
            let at = Instant::now() + CONFIRM;
            self.timers.add(Timer { at, backend, epoch: probed.epoch, wake: Wake::Confirm });
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
