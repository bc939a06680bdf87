//! Carries drains out: looks at the connections of draining backends again and again, closes what may be closed, and
//! reports how far each drain has come. Sleeps while nothing is drained.

mod ending;
mod look;
mod namespaces;
mod report;

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::reclaim;
use crate::{
    engine::client::Command,
    host::clock,
    model::DrainEnd,
    telemetry::{Closed, Instruments},
    view::{events::EventLog, operations::Operations, published::Published},
};
use look::Look;
use report::DrainReporter;

pub use ending::EndedBefore;
pub use look::Looker;
pub use namespaces::NamespaceCache;

/// Time between two looks; more when a look takes long, so that a drain that waits takes less than a tenth of a
/// processor.
const PERIOD: Duration = Duration::from_millis(250);
const SHARE: u32 = 12;
/// The same after a look that has closed something, or has found nothing left.
const MOVING_SHARE: u32 = 2;

pub struct DrainWorker {
    pub looker: Looker,
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub operations: Arc<Operations>,
    pub events: Arc<EventLog>,
    pub instruments: Arc<Instruments>,
}

/// The thread.
struct DrainLoop {
    looker: Looker,
    reporter: DrainReporter,
    instruments: Arc<Instruments>,
}

/// Starts the thread. `begun` wakes it when a drain begins or changes.
pub fn spawn(worker: DrainWorker, begun: Receiver<()>) {
    let DrainWorker { looker, published, commands, operations, events, instruments } = worker;
    let reporter = DrainReporter { published, commands, operations, events, drains: BTreeMap::new() };
    thread::spawn(move || DrainLoop { looker, reporter, instruments }.run(&begun));
}

impl DrainLoop {
    fn run(mut self, begun: &Receiver<()>) {
        let mut moved = false;
        loop {
            let start = Instant::now();
            let now = clock::stamp();
            let jobs = self.reporter.jobs(now);
            if self.reporter.drains.is_empty() {
                // Ends with the agent.
                let Ok(()) = begun.recv() else { return };
                continue;
            }
            // A deadline does not wait for the tenth of a processor.
            let left = self.reporter.time_left(&jobs, now);
            let thorough = moved || left.is_zero();
            moved = false;
            let mut once = Duration::ZERO;
            if !jobs.is_empty() {
                let mut look = self.looker.look(&jobs, thorough);
                look.problems.extend(self.reporter.published.borrow().missing.unattached());
                self.meter(&look);
                once = look.endings.took;
                let mut ends = Vec::new();
                for job in &jobs {
                    let (has_moved, ended) = self.reporter.report(job, &look, now);
                    moved |= has_moved;
                    ends.extend(ended);
                }
                // Whoever hears of an end finds the counters right.
                if ends.iter().any(|ended| ended.end == DrainEnd::Drained) {
                    self.correct();
                }
                ends.into_iter().for_each(|ended| self.reporter.end(ended));
                self.looker.forget(&jobs);
            }
            // What moves ends soon.
            let took = start.elapsed().saturating_sub(once);
            let share = if moved { took * MOVING_SHARE } else { (took * SHARE).min(left) };
            let pause = PERIOD.max(share);
            match begun.recv_timeout(pause) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => while begun.try_recv().is_ok() {},
            }
        }
    }

    fn meter(&self, look: &Look) {
        let (mut idle, mut late) = (0, 0);
        for remains in look.remains.values() {
            idle += u64::from(remains.closed_idle + remains.closed_datagrams);
            late += u64::from(remains.closed_late);
        }
        self.instruments.closed(Closed::Idle, idle);
        self.instruments.closed(Closed::Deadline, late);
        let inbound = look.inbound.values().map(|inbound| u64::from(inbound.closed));
        self.instruments.closed(Closed::Inbound, inbound.sum());
    }

    /// The counters say what the sockets say, from here on.
    fn correct(&self) {
        match reclaim::lost(&self.looker.meters) {
            Ok(lost) if !lost.is_empty() => drop(self.reporter.commands.send(Command::Lost(lost))),
            Ok(_) => {}
            Err(error) => tracing::warn!("the connection gauges cannot be checked: {error:#}"),
        }
    }
}
