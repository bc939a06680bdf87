//! Carries drains out: looks at the connections of draining backends again and again, closes what may be closed, and
//! reports how far each drain has come. Sleeps while nothing is drained.

mod look;
mod namespaces;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sluice_common::tables::{Endpoint, TCP};
use tokio::sync::watch;

use super::reclaim;
use crate::{
    control::drain::{Progress, Seen, Step, allowed},
    engine::client::{Command, DrainEnded},
    host::clock,
    model::{BackendId, Drain, DrainEnd, OperationPhase},
    telemetry::{Closed, Instruments},
    view::{
        events::{EventKind, EventLog},
        operations::{Operation, Operations, Remaining, plural},
        published::Published,
    },
};
use look::{DrainJob, DrainingBackend, Look};

pub use look::Looker;
pub use namespaces::NamespaceCache;

/// Time between two looks; more when a look takes long, so that a drain that waits takes less than a tenth of a
/// processor.
const PERIOD: Duration = Duration::from_millis(250);
const SHARE: u32 = 12;
/// The same after a look that has closed something, or has found nothing left.
const MOVING_SHARE: u32 = 2;
/// Time after which the end of a drain that still shows is told again: it could not be saved.
const TOLD: Duration = Duration::from_secs(2);
/// It is told twice as late each time, up to this.
const TOLD_AT_MOST: Duration = Duration::from_secs(60);

pub struct DrainWorker {
    pub looker: Looker,
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub operations: Arc<Operations>,
    pub events: Arc<EventLog>,
    pub instruments: Arc<Instruments>,
}

/// What is remembered of a drain from look to look.
#[derive(Default)]
struct Memory {
    progress: Progress,
    phases: Vec<OperationPhase>,
    /// When the end was told, and how long it may take until that shows in the published state.
    ended: Option<(Instant, Duration)>,
    clock: Option<Clock>,
}

/// The time as it goes on from the moment in which a deadline was learned: whoever sets the system's clock does not move
/// the deadline.
#[derive(Clone, Copy)]
struct Clock {
    deadline: Timestamp,
    time: Timestamp,
    then: Instant,
}

/// Starts the thread. `begun` wakes it when a drain begins or changes.
pub fn spawn(drainer: DrainWorker, begun: Receiver<()>) {
    thread::spawn(move || drainer.run(&begun));
}

impl DrainWorker {
    fn run(mut self, begun: &Receiver<()>) {
        let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
        let mut moved = false;
        loop {
            let jobs = self.jobs(&mut memories);
            memories.retain(|id, _| jobs.iter().any(|job| job.drain.operation == *id));
            if jobs.is_empty() {
                // Ends with the agent.
                let Ok(()) = begun.recv() else { return };
                continue;
            }
            let start = Instant::now();
            let told = |job: &DrainJob| memories.get(&job.drain.operation).is_some_and(|held| held.ended.is_some());
            let lasting = || jobs.iter().filter(|job| !told(job));
            let left = |job: &DrainJob| Duration::try_from(job.drain.deadline.duration_since(job.now));
            // A deadline does not wait for the tenth of a processor.
            let left = lasting().map(|job| left(job).unwrap_or(Duration::ZERO)).min().unwrap_or(Duration::MAX);
            let thorough = moved || left.is_zero();
            let look = self.looker.look(&jobs, thorough);
            self.meter(&look);
            moved = false;
            let mut ends = Vec::new();
            for job in &jobs {
                let memory = memories.entry(job.drain.operation.clone()).or_default();
                if memory.ended.is_none_or(|(told, patience)| told.elapsed() > patience) {
                    moved |= self.report(job, &look, memory, &mut ends);
                }
            }
            self.tell(ends);
            self.looker.forget(&jobs);
            // What moves ends soon.
            let share = if moved { start.elapsed() * MOVING_SHARE } else { (start.elapsed() * SHARE).min(left) };
            let pause = PERIOD.max(share);
            match begun.recv_timeout(pause) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => while begun.try_recv().is_ok() {},
            }
        }
    }

    /// The drains that last.
    fn jobs(&self, memories: &mut BTreeMap<String, Memory>) -> Vec<DrainJob> {
        let published = self.published.borrow().clone();
        let state = &published.state;
        let lasting = published.zeros.keys().filter_map(|target| {
            let drain = state.zero(target)?.lasting_drain()?.clone();
            let now = time(memories, &drain);
            let here = state.backends_of(target).into_iter().filter_map(|id| {
                let (service, backend) = state.backend(id)?;
                let address = Endpoint::new(backend.address, TCP);
                // Not always this drain: a backend's own goes before that of its node.
                let drain = state.drain(backend)?;
                let draining = drain.draining(service);
                let allowed = allowed(drain, draining.quiet, time(memories, drain));
                Some(DrainingBackend { id, address, draining, allowed, close_inbound: drain.close_inbound })
            });
            let gone = self.operations.get(&drain.operation).map(|operation| operation.gone).unwrap_or_default();
            let gone =
                gone.iter().filter(|gone| state.backend(BackendId(gone.id)).is_none()).map(DrainingBackend::gone);
            let backends = here.chain(gone).collect();
            Some(DrainJob { target: target.clone(), backends, drain, now })
        });
        lasting.collect()
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

    /// Takes note of what a look found of one drain, and tells. True when it closed something or found nothing left.
    fn report(&self, job: &DrainJob, look: &Look, memory: &mut Memory, ends: &mut Vec<DrainEnded>) -> bool {
        let Found { seen, remaining, closed } = self.found(job, look);
        let DrainJob { target, drain, .. } = job;
        let step = memory.progress.saw(drain, &seen, job.now);
        let (phase, end) = match step {
            Step::GoesOn(phase) => (phase, None),
            Step::Ends(DrainEnd::Drained) => (OperationPhase::Drained, Some(DrainEnd::Drained)),
            Step::Ends(DrainEnd::DeadlineReached) => (OperationPhase::DeadlineReached, Some(DrainEnd::DeadlineReached)),
        };
        let nothing_left = seen.total + seen.inbound == 0 && look.problems.is_empty();
        let moved = nothing_left || seen.closed > 0;
        let message = message(phase, &remaining, look);
        let change = |operation: &mut Operation| {
            operation.deadline = Some(drain.deadline);
            operation.remaining = remaining;
            operation.closed_idle += closed.idle;
            operation.closed_late += closed.late;
            operation.closed_inbound += closed.inbound;
            operation.message = message;
            if end.is_none() {
                operation.phase = phase;
            }
        };
        let Some(operation) = self.operations.update(&drain.operation, change) else { return moved };
        if let Some(end) = end {
            let patience = memory.ended.map_or(TOLD, |(_, patience)| (patience * 2).min(TOLD_AT_MOST));
            memory.ended = Some((Instant::now(), patience));
            ends.push(DrainEnded { target: target.clone(), operation: Operation { phase, ..operation }, end });
            return moved;
        }
        // An end that was told may have come to nothing: the drain was put off.
        memory.ended = None;
        if !memory.phases.contains(&phase) {
            memory.phases.push(phase);
            self.events.record(EventKind::DrainMoved, Some(target.to_string()), &*operation.message);
            let _ = self.commands.send(Command::KeepOperation(Box::new(operation)));
        }
        moved
    }

    /// Whoever hears of an end finds the counters right.
    fn tell(&self, ends: Vec<DrainEnded>) {
        if ends.iter().any(|ended| ended.end == DrainEnd::Drained) {
            self.correct();
        }
        for ended in ends {
            // The agent stops when nobody listens; the next one goes on.
            let (reply, _) = tokio::sync::oneshot::channel();
            let _ = self.commands.send(Command::EndDrain { ended: Box::new(ended), reply });
        }
    }

    fn found(&self, job: &DrainJob, look: &Look) -> Found {
        let (mut seen, mut remaining, mut closed) = (Seen::default(), Remaining::default(), ClosedNow::default());
        let (mut in_flight, mut idle, mut datagrams, mut oldest) = (0, 0, 0, 0_u64);
        for backend in &job.backends {
            let Some(remains) = look.remains.get(&backend.id) else { continue };
            seen.total += remains.total();
            if backend.draining.quiet != 0 {
                seen.closing += u64::from(remains.idle + remains.datagrams);
            }
            // What was closed in this look is not left.
            let left = |found: u32, closed: u32| u64::from(found.saturating_sub(closed));
            in_flight += left(remains.in_flight + remains.connecting, remains.closed_late);
            idle += left(remains.idle, remains.closed_idle);
            datagrams += left(remains.datagrams, remains.closed_datagrams);
            if remains.oldest != 0 && (oldest == 0 || remains.oldest < oldest) {
                oldest = remains.oldest;
            }
            closed.idle += u64::from(remains.closed_idle + remains.closed_datagrams);
            closed.late += u64::from(remains.closed_late);
        }
        let addresses: BTreeSet<Endpoint> = job.backends.iter().map(|backend| backend.address).collect();
        let mut inbound_in_flight = 0;
        for inbound in addresses.iter().filter_map(|address| look.inbound.get(address)) {
            seen.inbound += u64::from(inbound.in_flight + inbound.idle);
            inbound_in_flight += u64::from(inbound.in_flight);
            closed.inbound += u64::from(inbound.closed);
        }
        seen.complete = look.problems.is_empty() && look.skipped == 0;
        remaining.total = in_flight + idle + datagrams;
        remaining.in_flight = Some(in_flight);
        remaining.idle = Some(idle);
        remaining.datagrams = Some(datagrams);
        let is_here = addresses.iter().any(|address| look.local.contains(&address.socket_addr().ip()));
        if is_here || seen.inbound > 0 {
            remaining.inbound = Some(seen.inbound.saturating_sub(closed.inbound));
            remaining.inbound_in_flight = Some(inbound_in_flight);
        }
        let age = clock::monotonic_ns().saturating_sub(oldest);
        remaining.oldest_seconds = (oldest != 0 && remaining.total > 0).then_some(age as f64 / 1e9);
        seen.closed = closed.idle + closed.late + closed.inbound;
        seen.closed_late = closed.late;
        Found { seen, remaining, closed }
    }

    /// The counters say what the sockets say, from here on.
    fn correct(&self) {
        match reclaim::lost(&self.looker.meters) {
            Ok(lost) if !lost.is_empty() => drop(self.commands.send(Command::Lost(lost))),
            Ok(_) => {}
            Err(error) => tracing::warn!("the connection gauges cannot be checked: {error:#}"),
        }
    }
}

/// The time by which a drain's deadline is judged.
fn time(memories: &mut BTreeMap<String, Memory>, drain: &Drain) -> Timestamp {
    let held = &mut memories.entry(drain.operation.clone()).or_default().clock;
    let known = held.filter(|clock| clock.deadline == drain.deadline);
    let learn = || Clock { deadline: drain.deadline, time: Timestamp::now(), then: Instant::now() };
    let clock = *held.insert(known.unwrap_or_else(learn));
    clock.time.checked_add(clock.then.elapsed()).unwrap_or(Timestamp::MAX)
}

struct Found {
    seen: Seen,
    remaining: Remaining,
    closed: ClosedNow,
}

#[derive(Default)]
struct ClosedNow {
    idle: u64,
    late: u64,
    inbound: u64,
}

fn message(phase: OperationPhase, remaining: &Remaining, look: &Look) -> String {
    let mut text = remaining.message(phase, look.problems.is_empty());
    if look.by_netlink {
        text += "; closed by netlink: a request that goes out between look and close is lost";
    }
    if look.inbound.values().any(|inbound| inbound.quiet != 0) && !look.closes_inbound {
        text += "; what backends have accepted is counted only: closing it needs Linux 6.5";
    }
    if look.unreachable > 0 {
        let places = plural(look.unreachable as u64, "network namespace");
        text += &format!("; {places} cannot be found: the connections there stay");
    }
    for problem in &look.problems {
        text += "; ";
        text += problem;
    }
    text
}
