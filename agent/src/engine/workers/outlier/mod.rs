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

use tokio::sync::watch;

use crate::{
    control::outlier::{Action, Ejector, Limits, Look, Now, Signal, Streaks, Tried},
    engine::client::Command,
    host::clock,
    kernel::{Meters, Signals, StreakTable},
    model::{BackendId, HealthUpdate, Service, ServiceId},
    telemetry::Instruments,
    view::published::Published,
};
use kernel_source::KernelStreaks;

/// What the thread sees and moves in the kernel. Tests have a few numbers instead.
trait StreakSource: Send + 'static {
    /// Sleeps until there are signals, somebody wakes it, or the time is over.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(BackendId, Signal, Streaks)>>;

    /// What is counted of each backend, in the order asked for.
    ///
    /// # Errors
    /// When the tables cannot be read.
    fn look(&self, backends: &[BackendId]) -> anyhow::Result<Vec<Look>>;

    /// # Errors
    /// When the table has no such entry.
    fn restart(&self, backend: BackendId) -> anyhow::Result<()>;

    /// # Errors
    /// When the table has no such entry.
    fn limit(&self, backend: BackendId, limits: Limits) -> anyhow::Result<()>;
}

pub struct OutlierWorker {
    pub signals: Signals,
    pub streaks: StreakTable,
    pub meters: Arc<Meters>,
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub instruments: Arc<Instruments>,
    /// SO_MARK of the connections by which backends are tried.
    pub mark: u32,
}

/// What other threads have for this one. Whoever sends it wakes the thread then.
enum News {
    Published(Vec<(ServiceId, Option<Arc<Service>>)>),
    Tried(Vec<(BackendId, Tried)>),
    /// Nothing is published any more.
    Over,
}

/// The thread.
struct OutlierLoop<E> {
    source: E,
    ejector: Ejector,
    news: Receiver<News>,
    commands: Sender<Command>,
    instruments: Arc<Instruments>,
    /// Begins to try backends; what comes of it is news.
    tries: Box<dyn Fn(Vec<recovery_probe::Wanted>) + Send>,
}

/// Starts the threads.
pub fn spawn(outliers: OutlierWorker) {
    let OutlierWorker { signals, streaks, meters, published, commands, instruments, mark } = outliers;
    let (sender, news) = mpsc::channel();
    let waker = signals.waker();
    follow::spawn(published, sender.clone(), waker.clone());
    let tries = Box::new(move |backends| recovery_probe::spawn(backends, mark, sender.clone(), waker.clone()));
    let source = KernelStreaks { signals, streaks, meters };
    let judge = OutlierLoop { source, ejector: Ejector::default(), news, commands, instruments, tries };
    thread::spawn(move || judge.run());
}

impl<E: StreakSource> OutlierLoop<E> {
    fn run(mut self) {
        loop {
            let timeout =
                self.ejector.next_due().map(|due| Duration::from_nanos(due.saturating_sub(clock::stamp().ns)));
            let signals = match self.source.wait(timeout) {
                Ok(signals) => signals,
                Err(error) => {
                    // Windows make up for what is missed.
                    tracing::warn!("waiting for signals of the kernel: {error}");
                    thread::sleep(Duration::from_secs(1));
                    Vec::new()
                }
            };
            if self.turn(&signals, &now()).is_err() {
                return;
            }
        }
    }

    /// # Errors
    /// When nobody listens any more.
    fn turn(&mut self, signals: &[(BackendId, Signal, Streaks)], now: &Now) -> Result<(), Stopped> {
        while let Ok(news) = self.news.try_recv() {
            match news {
                News::Published(services) => {
                    for (id, service) in services {
                        if let Some(service) = service.as_deref().filter(|s| s.health_policy.outlier.is_some()) {
                            self.instruments.may_eject(service.name.as_str());
                        }
                        self.ejector.adopt(id, service.as_ref(), now);
                    }
                }
                News::Tried(tried) => {
                    for (backend, tried) in tried {
                        self.ejector.tried(backend, &tried, now);
                    }
                }
                News::Over => return Err(Stopped),
            }
            // Limits and streaks as they are after what came first.
            self.act()?;
        }
        for (backend, signal, streaks) in signals {
            self.ejector.hear(*backend, *signal, streaks, now);
        }
        let wanted = self.ejector.wanted(now);
        let looks = self.source.look(&wanted).unwrap_or_else(|error| {
            tracing::warn!("the counts of backends cannot be read: {error:#}");
            Vec::new()
        });
        let looks: BTreeMap<BackendId, Look> = wanted.into_iter().zip(looks).collect();
        self.ejector.tick(&looks, now);
        self.act()
    }

    fn act(&mut self) -> Result<(), Stopped> {
        let (mut updates, mut tries): (Vec<HealthUpdate>, Vec<_>) = (Vec::new(), Vec::new());
        for action in self.ejector.actions() {
            let done = match action {
                Action::Find(update) => {
                    updates.push(update);
                    Ok(())
                }
                Action::Ejected { service, rule } => {
                    self.instruments.ejected(service.as_str(), rule);
                    Ok(())
                }
                Action::Spared { service, backend, rule, message } => {
                    tracing::warn!(
                        "{service}/{backend} breaks the rule {} and stays, for no more may be out (maxEjectionPercent): \
                         {message}",
                        rule.name()
                    );
                    Ok(())
                }
                Action::Restart(backend) => self.source.restart(backend),
                Action::Limit(backend, limits) => self.source.limit(backend, limits),
                Action::Try(backend, address) => {
                    tries.push((backend, address));
                    Ok(())
                }
            };
            if let Err(error) = done {
                tracing::warn!("{error:#}");
            }
        }
        if !tries.is_empty() {
            (self.tries)(tries);
        }
        if updates.is_empty() {
            return Ok(());
        }
        self.commands.send(Command::UpdateHealth(updates)).map_err(|_| Stopped)
    }
}

/// The agent is stopping.
struct Stopped;

fn now() -> Now {
    Now { stamp: clock::stamp(), monotonic: clock::monotonic_ns() }
}
