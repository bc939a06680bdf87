//! Carries ejections out: one thread that sleeps until the kernel signals, a service with rules is published anew, or
//! something is due. Without such a service it never wakes.

mod follow;
mod kernel_source;
mod recovery_probe;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::sync::watch;

use super::changes::ServiceChange;
use crate::{
    control::{
        StateMachine,
        outlier::{
            BackendCounts, OutlierAction, OutlierDetector, OutlierEvent, RecoveryProbe, SignalKind, SignalLimits,
            Streaks,
        },
    },
    engine::client::Command,
    host::clock,
    kernel::{Meters, Signals, StreakTable},
    model::{BackendId, HealthUpdate, Stamp},
    telemetry::Instruments,
    view::published::Published,
};
use kernel_source::KernelStreaks;
use recovery_probe::ProbeTarget;

/// What the thread sees and moves in the kernel. Tests have a few numbers instead.
trait StreakSource: Send + 'static {
    /// Sleeps until there are signals, somebody wakes it, or the time is over.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(BackendId, SignalKind, Streaks)>>;

    /// What is counted of each backend, in the order asked for.
    ///
    /// # Errors
    /// When the tables cannot be read.
    fn count(&self, backends: &[BackendId]) -> anyhow::Result<Vec<BackendCounts>>;

    /// Begins the streaks of a backend anew.
    ///
    /// # Errors
    /// When the table has no such entry.
    fn restart(&self, backend: BackendId) -> anyhow::Result<()>;

    /// Sets at which streaks the kernel signals.
    ///
    /// # Errors
    /// When the table has no such entry.
    fn limit(&self, backend: BackendId, limits: SignalLimits) -> anyhow::Result<()>;
}

pub struct OutlierWorker {
    pub signals: Signals,
    pub streaks: StreakTable,
    pub meters: Arc<Meters>,
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub instruments: Arc<Instruments>,
    /// SO_MARK of the connections by which backends are probed.
    pub mark: u32,
}

/// What other threads have for this one. Whoever sends it wakes the thread then.
enum OutlierMessage {
    Published(Vec<ServiceChange>),
    /// Recovery probes are over.
    Probed(Vec<(BackendId, RecoveryProbe)>),
    /// Nothing is published any more.
    Over,
}

/// The thread.
struct OutlierLoop<E> {
    source: E,
    detector: OutlierDetector,
    messages: Receiver<OutlierMessage>,
    commands: Sender<Command>,
    instruments: Arc<Instruments>,
    /// Begins recovery probes; what comes of them is a message.
    probe: Box<dyn Fn(Vec<ProbeTarget>) + Send>,
}

/// Starts the threads.
pub fn spawn(worker: OutlierWorker) {
    let OutlierWorker { signals, streaks, meters, published, commands, instruments, mark } = worker;
    let (sender, messages) = mpsc::channel();
    let waker = signals.waker();
    follow::spawn(published, sender.clone(), waker.clone());
    let probe = Box::new(move |backends| recovery_probe::spawn(backends, mark, sender.clone(), waker.clone()));
    let source = KernelStreaks { signals, streaks, meters };
    let detector = OutlierDetector::default();
    thread::spawn(move || OutlierLoop { source, detector, messages, commands, instruments, probe }.run());
}

impl<E: StreakSource> OutlierLoop<E> {
    fn run(mut self) {
        loop {
            let timeout = self.detector.time_left(clock::stamp());
            let signals = match self.source.wait(timeout) {
                Ok(signals) => signals,
                Err(error) => {
                    // The periodic window check covers lost signals.
                    tracing::warn!("waiting for signals of the kernel: {error}");
                    thread::sleep(Duration::from_secs(1));
                    Vec::new()
                }
            };
            if self.turn(signals, clock::stamp()).is_err() {
                return;
            }
        }
    }

    /// # Errors
    /// When nobody listens any more.
    fn turn(&mut self, signals: Vec<(BackendId, SignalKind, Streaks)>, now: Stamp) -> Result<(), Stopped> {
        while let Ok(message) = self.messages.try_recv() {
            match message {
                OutlierMessage::Published(changes) => {
                    for ServiceChange { id, after, .. } in changes {
                        if let Some(service) = after.as_deref().filter(|one| one.health_policy.outlier.is_some()) {
                            self.instruments.may_eject(service.name.as_str());
                        }
                        self.detector.handle(OutlierEvent::Published(id, after.as_ref()), now);
                    }
                }
                OutlierMessage::Probed(probes) => {
                    for (backend, probe) in probes {
                        self.detector.handle(OutlierEvent::Probed(backend, &probe), now);
                    }
                }
                OutlierMessage::Over => return Err(Stopped),
            }
            // The next message is judged by limits and streaks as this one leaves them.
            self.act(now)?;
        }
        for (backend, signal, streaks) in signals {
            self.detector.handle(OutlierEvent::Signalled(backend, signal, streaks), now);
        }
        self.detector.handle(OutlierEvent::Timeout, now);
        self.act(now)
    }

    fn act(&mut self, now: Stamp) -> Result<(), Stopped> {
        let (mut updates, mut targets): (Vec<HealthUpdate>, Vec<ProbeTarget>) = (Vec::new(), Vec::new());
        while let Some(action) = self.detector.next_action() {
            let done = match action {
                OutlierAction::Count(backends) => {
                    let counted = self.source.count(&backends);
                    let (counts, done) = counted.map_or_else(|error| (Vec::new(), Err(error)), |held| (held, Ok(())));
                    let counts: BTreeMap<BackendId, BackendCounts> = backends.into_iter().zip(counts).collect();
                    self.detector.handle(OutlierEvent::Counted(&counts), now);
                    done.context("the counts of backends cannot be read")
                }
                OutlierAction::Update(update) => {
                    updates.push(update);
                    Ok(())
                }
                OutlierAction::Ejected { service, rule } => {
                    self.instruments.ejected(service.as_str(), rule);
                    Ok(())
                }
                OutlierAction::Spared { service, backend, rule, message } => {
                    tracing::warn!(
                        "{service}/{backend} breaks the rule {} and stays, for no more may be out (maxEjectionPercent): \
                         {message}",
                        rule.name()
                    );
                    Ok(())
                }
                OutlierAction::Restart(backend) => self.source.restart(backend),
                OutlierAction::Limit(backend, limits) => self.source.limit(backend, limits),
                OutlierAction::Probe(backend, address) => {
                    targets.push((backend, address));
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::warn!("{error:#}");
            }
        }
        if !targets.is_empty() {
            (self.probe)(targets);
        }
        if updates.is_empty() {
            return Ok(());
        }
        self.commands.send(Command::UpdateHealth(updates)).map_err(|_| Stopped)
    }
}

/// The agent is stopping.
struct Stopped;
