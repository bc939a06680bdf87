//! Which drains last, how far the looks find that each has come, and its end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, mpsc::Sender},
    time::Duration,
};

use sluice_common::{
    drain::REQUESTS,
    tables::{Endpoint, TCP},
};
use tokio::sync::{
    oneshot::{self, Receiver, error::TryRecvError},
    watch,
};

use super::look::{DrainJob, DrainingBackend, Look};
use crate::{
    control::{
        StateMachine,
        drain::{DrainAction, DrainEvent, DrainProgress, SeenConnections},
    },
    engine::client::{Command, DrainEndAck, DrainEnded},
    host::clock,
    model::{
        BackendId, Drain, DrainEnd, OperationPhase, ServiceProtocol, Stamp, State, Target, UsualPort, words::plural,
    },
    view::{
        events::{EventKind, EventLog},
        operations::{Operation, Operations, Remaining},
        published::Published,
    },
};

/// Keeps the operations of drains up to date, and tells the engine when a drain is over.
pub struct DrainReporter {
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub operations: Arc<Operations>,
    pub events: Arc<EventLog>,
    /// By operation.
    pub drains: BTreeMap<String, LastingDrain>,
}

/// What is remembered of a drain from look to look.
pub struct LastingDrain {
    progress: DrainProgress,
    /// Phases that were told.
    phases: Vec<OperationPhase>,
    /// The engine's answer to the end of the drain, once the engine was told that.
    ended: Option<Receiver<DrainEndAck>>,
}

/// Connections that one look has closed.
#[derive(Default)]
struct ClosedNow {
    idle: u64,
    late: u64,
    inbound: u64,
}

impl DrainReporter {
    /// The drains that last, but for those whose end the engine was told and has not answered yet.
    pub fn jobs(&mut self, now: Stamp) -> Vec<DrainJob> {
        let published = self.published.borrow().clone();
        let state = &published.state;
        let lasting = published.zeros.keys();
        let lasting: Vec<_> =
            lasting.filter_map(|target| Some((target, state.zero(target)?.lasting_drain()?))).collect();
        let mut known = std::mem::take(&mut self.drains);
        for (_, drain) in &lasting {
            let begin = || known.remove(&drain.operation).unwrap_or_else(|| LastingDrain::new(drain, now));
            let held = self.drains.entry(drain.operation.clone()).or_insert_with(begin);
            held.progress.handle(DrainEvent::Asked(drain), now);
        }
        let mut jobs = Vec::new();
        for (target, drain) in lasting {
            if self.drains.get_mut(&drain.operation).is_some_and(LastingDrain::goes_on) {
                jobs.push(DrainJob {
                    target: target.clone(),
                    drain: drain.clone(),
                    backends: self.backends(state, target, drain, now),
                });
            }
        }
        jobs
    }

    /// Time until a look may end one of the jobs.
    pub fn time_left(&self, jobs: &[DrainJob], now: Stamp) -> Duration {
        let left = jobs.iter().filter_map(|job| self.drains.get(&job.drain.operation)?.progress.time_left(now));
        left.min().unwrap_or(Duration::MAX)
    }

    /// Takes note of what a look found of one drain. Returns whether it has closed something or found nothing left, and the
    /// drain's end, if it is over.
    pub fn report(&mut self, job: &DrainJob, look: &Look, now: Stamp) -> (bool, Option<DrainEnded>) {
        let (seen, remaining, closed) = found(job, look);
        let DrainJob { target, drain, .. } = job;
        let nothing_left = seen.total + seen.inbound + seen.flows == 0 && look.problems.is_empty();
        let moved = nothing_left || seen.closed > 0;
        let Some(held) = self.drains.get_mut(&drain.operation) else { return (moved, None) };
        held.progress.handle(DrainEvent::Looked(seen), now);
        let (phase, end) = match held.progress.next_action() {
            Some(DrainAction::GoesOn(phase)) => (phase, None),
            Some(DrainAction::Ends(end @ DrainEnd::Drained)) => (OperationPhase::Drained, Some(end)),
            Some(DrainAction::Ends(end @ DrainEnd::DeadlineReached)) => (OperationPhase::DeadlineReached, Some(end)),
            None => return (moved, None),
        };
        let mut message = message(phase, &remaining, job, look);
        let published = self.published.borrow().clone();
        let proof = published.zeros.get(target);
        message.extend(proof.and_then(|proof| proof.unattached).map(|unattached| format!("; {unattached}")));
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
        let Some(operation) = self.operations.update(&drain.operation, change) else { return (moved, None) };
        if let Some(end) = end {
            let operation = Operation { phase, ..operation };
            let ended = DrainEnded { target: target.clone(), drain: drain.clone(), operation, end };
            return (moved, Some(ended));
        }
        if !held.phases.contains(&phase) {
            held.phases.push(phase);
            self.events.record(EventKind::DrainMoved, Some(target.to_string()), &*operation.message);
            let _ = self.commands.send(Command::KeepOperation(Box::new(operation)));
        }
        (moved, None)
    }

    /// Tells the engine that a drain is over, and waits for its answer.
    pub fn end(&mut self, ended: DrainEnded) {
        let Some(held) = self.drains.get_mut(&ended.operation.id) else { return };
        let (reply, answer) = oneshot::channel();
        held.ended = Some(answer);
        // The agent stops when nobody listens; the next one goes on.
        let _ = self.commands.send(Command::EndDrain { ended: Box::new(ended), reply });
    }

    /// The backends of a drain's target: those of the configuration, and those that have left it.
    fn backends(&self, state: &State, target: &Target, drain: &Drain, now: Stamp) -> Vec<DrainingBackend> {
        let here = state.backends_of(target).into_iter().filter_map(|id| {
            let (service, backend) = state.backend(id)?;
            let address = Endpoint::new(backend.address, TCP);
            // Not always this drain: a backend's own goes before that of its node.
            let drain = state.drain(backend)?;
            let draining = drain.draining(service, backend);
            let allowed = self.drains.get(&drain.operation)?.progress.allowed(draining.quiet, now);
            let carries_requests = service.protocol == Some(ServiceProtocol::Request);
            let allowed = if carries_requests { allowed | REQUESTS } else { allowed };
            Some(DrainingBackend {
                id,
                address,
                draining,
                allowed: allowed | service.close_as.allowed(),
                close_inbound: drain.close_inbound,
                keeps_flows: service.keeps_flows(),
                usual_port: drain.usual_port(service, backend),
            })
        });
        let gone = self.operations.get(&drain.operation).map(|operation| operation.gone).unwrap_or_default();
        let gone = gone.iter().filter(|gone| state.backend(BackendId(gone.id)).is_none()).map(DrainingBackend::gone);
        here.chain(gone).collect()
    }
}

impl LastingDrain {
    fn new(drain: &Drain, now: Stamp) -> Self {
        Self { progress: DrainProgress::new(drain, now), phases: Vec::new(), ended: None }
    }

    /// Whether there is something to look at: the engine was not told of an end, or has answered that it is none.
    fn goes_on(&mut self) -> bool {
        match self.ended.as_mut().map(Receiver::try_recv) {
            None => true,
            Some(Ok(DrainEndAck::Superseded)) => {
                self.ended = None;
                true
            }
            Some(Ok(DrainEndAck::Ended) | Err(TryRecvError::Empty | TryRecvError::Closed)) => false,
        }
    }
}

/// What a look found of one drain, what is left of it, and what it has closed.
fn found(job: &DrainJob, look: &Look) -> (SeenConnections, Remaining, ClosedNow) {
    let (mut seen, mut remaining, mut closed) =
        (SeenConnections::default(), Remaining::default(), ClosedNow::default());
    let (mut in_flight, mut idle, mut sessions, mut datagrams, mut oldest) = (0, 0, 0, 0, 0_u64);
    for backend in &job.backends {
        seen.flows += look.flows.get(&backend.id).copied().unwrap_or(0);
        let Some(remains) = look.remains.get(&backend.id) else { continue };
        seen.total += remains.total();
        if backend.draining.quiet != 0 {
            seen.closing += u64::from(remains.idle.saturating_sub(remains.sessions) + remains.datagrams);
        }
        // What was closed in this look is not left.
        let left = |found: u32, closed: u32| u64::from(found.saturating_sub(closed));
        in_flight += left(remains.in_flight + remains.connecting, remains.closed_late);
        idle += left(remains.idle, remains.closed_idle);
        datagrams += left(remains.datagrams, remains.closed_datagrams);
        sessions += match backend.usual_port {
            Some(_) => left(remains.idle, remains.closed_idle),
            None => u64::from(remains.sessions),
        };
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
    remaining.sessions = Some(sessions);
    remaining.datagrams = Some(datagrams);
    remaining.flows = job.backends.iter().any(|backend| backend.keeps_flows).then_some(seen.flows);
    let is_here = addresses.iter().any(|address| look.local.contains(&address.socket_addr().ip()));
    if is_here || seen.inbound > 0 {
        remaining.inbound = Some(seen.inbound.saturating_sub(closed.inbound));
        remaining.inbound_in_flight = Some(inbound_in_flight);
    }
    let age = clock::monotonic_ns().saturating_sub(oldest);
    remaining.oldest_seconds = (oldest != 0 && remaining.total > 0).then_some(age as f64 / 1e9);
    seen.closed = closed.idle + closed.late + closed.inbound;
    seen.closed_late = closed.late;
    (seen, remaining, closed)
}

fn message(phase: OperationPhase, remaining: &Remaining, job: &DrainJob, look: &Look) -> String {
    let mut text = remaining.message(phase, look.problems.is_empty());
    let idle = |backend: &&DrainingBackend| look.remains.get(&backend.id).is_some_and(|remains| remains.idle > 0);
    let usual: BTreeSet<_> = job.backends.iter().filter(idle).filter_map(|backend| backend.usual_port).collect();
    if phase != OperationPhase::Drained {
        for UsualPort { port, of } in usual {
            text += &format!("; port {port} is usually that of {of}");
        }
    }
    if look.by_netlink {
        text += "; closed by netlink: a request that goes out between look and close is lost";
    }
    if look.inbound.values().any(|inbound| inbound.quiet != 0) && !look.closes_inbound {
        text += "; what backends have accepted is counted only: closing it needs Linux 6.5";
    }
    text += &look.endings.remarks();
    if look.unreachable > 0 {
        let places = plural(look.unreachable as u64, "network namespace");
        text += &format!(
            "; {places} cannot be found, and the connections there stay: the agent needs the host's process ids (hostPID), or \
                       Linux 6.18"
        );
    }
    for problem in &look.problems {
        text += "; ";
        text += problem;
    }
    text
}

#[cfg(test)]
mod tests;
