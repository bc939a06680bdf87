//! Carries drains out: looks at the connections of leaving backends again and again, closes what may be closed, and
//! reports how far each drain has come. Sleeps while nothing is drained.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, UdpSocket},
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use jiff::Timestamp;
use sluice_common::{
    leaving::{Doing, Inbound, Leaving, Place, Remains, judge},
    records::CensusRow,
    tables::{Endpoint, TCP},
};
use tokio::sync::watch;

use super::keeper;
use crate::{
    control::drain::{Progress, Seen, Step, allowed},
    handle::{Command, DrainEnded, Published},
    kernel::{
        Meters, Passes,
        namespaces::{Namespace, cookie_here, tour},
        sock_diag::Diagnosis,
    },
    model::{BackendId, CloseInbound, Drain, DrainEnd, Target},
    observe::{
        cgroups, clock,
        events::{EventKind, EventLog},
        operations::{Operation, Operations, Phase, Remaining},
    },
    telemetry::{Closed, Instruments},
};

/// Time between two looks; more when a look takes long, so that drains take a tenth of a processor at the most.
const PERIOD: Duration = Duration::from_millis(250);
const SHARE: u32 = 10;
/// Sockets that one look closes by netlink: the rest waits for the next one.
const CLOSED_BY_NETLINK: usize = 1000;

pub struct Drainer {
    pub passes: Passes,
    pub meters: Arc<Meters>,
    pub published: watch::Receiver<Arc<Published>>,
    pub commands: Sender<Command>,
    pub operations: Arc<Operations>,
    pub events: Arc<EventLog>,
    pub instruments: Arc<Instruments>,
    /// Processes in it, and below, are those that this agent answers for.
    pub cgroup: PathBuf,
}

/// A drain that lasts.
struct Course {
    target: Target,
    drain: Drain,
    backends: Vec<LeavingBackend>,
}

#[derive(Clone, Copy)]
struct LeavingBackend {
    id: BackendId,
    address: Endpoint,
    /// ms of quiet after which its idle connections are closed; 0: never.
    quiet: u32,
}

/// What one look found and did.
#[derive(Default)]
struct Look {
    remains: HashMap<BackendId, Remains>,
    inbound: HashMap<Endpoint, Inbound>,
    /// Network namespaces with something to close that could not be entered.
    unreachable: usize,
    /// Whether two steps were needed to close something.
    by_netlink: bool,
    problems: BTreeSet<String>,
}

/// A socket that may be closed.
#[derive(Clone, Copy)]
struct Closable {
    row: CensusRow,
    doing: Doing,
}

/// What is remembered of a drain from look to look.
#[derive(Default)]
struct Memory {
    progress: Progress,
    phases: Vec<Phase>,
    /// The end was told; it shows in the published state soon.
    ended: bool,
}

/// Starts the thread. `begun` wakes it when a drain begins or changes.
pub fn spawn(drainer: Drainer, begun: Receiver<()>) {
    thread::spawn(move || drainer.run(&begun));
}

impl Drainer {
    fn run(self, begun: &Receiver<()>) {
        let mut memories: BTreeMap<String, Memory> = BTreeMap::new();
        loop {
            let courses = self.courses();
            memories.retain(|id, _| courses.iter().any(|course| course.drain.operation == *id));
            if courses.is_empty() {
                // Ends with the agent.
                let Ok(()) = begun.recv() else { return };
                continue;
            }
            let start = Instant::now();
            let look = self.look(&courses);
            for course in &courses {
                let memory = memories.entry(course.drain.operation.clone()).or_default();
                if !memory.ended {
                    self.report(course, &look, memory);
                }
            }
            self.forget(&courses);
            match begun.recv_timeout(PERIOD.max(start.elapsed() * SHARE)) {
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The drains that last.
    fn courses(&self) -> Vec<Course> {
        let published = self.published.borrow().clone();
        let state = &published.state;
        let lasting = published.zeros.keys().filter_map(|target| {
            let drain = state.zero(target)?.lasting_drain()?.clone();
            let backends = state.backends_of(target).into_iter().filter_map(|id| {
                let (service, backend) = state.backend(id)?;
                let address = Endpoint::new(backend.address, TCP);
                Some(LeavingBackend { id, address, quiet: drain.quiet(service) })
            });
            Some(Course { target: target.clone(), backends: backends.collect(), drain })
        });
        lasting.collect()
    }

    /// Counts, closes what may be closed, and counts what local backends have accepted.
    fn look(&self, courses: &[Course]) -> Look {
        let mut look = Look::default();
        if let Err(error) = self.try_look(courses, &mut look) {
            look.problems.insert(format!("{error:#}"));
        }
        look
    }

    fn try_look(&self, courses: &[Course], look: &mut Look) -> Result<()> {
        let now = Timestamp::now();
        let mut permits: HashMap<BackendId, (Leaving, u32)> = HashMap::new();
        for course in courses {
            for backend in &course.backends {
                let permit = permits.entry(backend.id).or_default();
                permit.0.quiet = permit.0.quiet.max(backend.quiet);
                permit.1 |= allowed(&course.drain, backend.quiet, now);
                let closes = course.drain.close_inbound == CloseInbound::Idle;
                let inbound = look.inbound.entry(backend.address).or_default();
                inbound.quiet = inbound.quiet.max(if closes { backend.quiet } else { 0 });
            }
        }
        for (id, (_, allowed)) in &permits {
            self.passes.begin(*id, *allowed)?;
        }
        for (address, inbound) in &look.inbound {
            self.passes.begin_inbound(address, inbound.quiet)?;
        }
        let places = self.passes.survey()?;
        let sockets = if self.passes.can_destroy() || places.is_empty() {
            HashMap::new()
        } else {
            look.by_netlink = true;
            self.closable(&permits)?
        };
        self.visit(places, &sockets, look);
        for (id, remains) in permits.keys().map(|id| (*id, self.passes.remains(*id))) {
            // What netlink has closed is counted already.
            let closed = look.remains.get(&id).copied().unwrap_or_default();
            let mut remains = remains?;
            remains.closed_idle += closed.closed_idle;
            remains.closed_late += closed.closed_late;
            remains.closed_datagrams += closed.closed_datagrams;
            look.remains.insert(id, remains);
        }
        for (address, inbound) in &mut look.inbound {
            *inbound = self.passes.inbound(address)?;
        }
        Ok(())
    }

    /// Goes to every network namespace in which something is to be closed, or which has the address of a backend.
    fn visit(&self, places: Vec<(u64, Place)>, sockets: &HashMap<u64, Vec<Closable>>, look: &mut Look) {
        let addresses: BTreeSet<IpAddr> = look.inbound.keys().map(|address| address.socket_addr().ip()).collect();
        let known = Namespace::of_processes(cgroups::processes(&self.cgroup));
        let about = tour(&known, |_| Ok((cookie_here()?, addresses.iter().any(is_local))));
        let mut places: BTreeMap<u64, Place> = places.into_iter().collect();
        let mut wanted = Vec::new();
        for (namespace, about) in known.iter().zip(about) {
            match about {
                Ok((cookie, is_local)) if places.remove(&cookie).is_some() || is_local => {
                    wanted.push((namespace, cookie))
                }
                Ok(_) => {}
                Err(error) => drop(look.problems.insert(format!("{error:#}"))),
            }
        }
        // Those of processes outside, and of sockets that outlived every process inside.
        let others: Vec<_> = places
            .iter()
            .filter_map(|(cookie, place)| Some((Namespace::with_cookie(*cookie, place.pid)?, *cookie)))
            .collect();
        look.unreachable = places.len() - others.len();
        wanted.extend(others.iter().map(|(namespace, cookie)| (namespace, *cookie)));
        let mut cookies = wanted.iter().map(|(_, cookie)| *cookie);
        let closed = tour(wanted.iter().map(|(namespace, _)| *namespace), |_| {
            let sockets = cookies.next().and_then(|cookie| sockets.get(&cookie));
            self.passes.visit()?;
            sockets.map_or(Ok(Vec::new()), |sockets| close_by_netlink(sockets))
        });
        for closed in closed {
            match closed {
                Ok(closed) => closed.into_iter().for_each(|socket| look.note_closed(&socket)),
                Err(error) => drop(look.problems.insert(format!("{error:#}"))),
            }
        }
    }

    /// Sockets that may be closed, by their network namespaces: for kernels on which a visit cannot close.
    fn closable(&self, permits: &HashMap<BackendId, (Leaving, u32)>) -> Result<HashMap<u64, Vec<Closable>>> {
        let census = self.meters.census()?;
        let mut found: HashMap<u64, Vec<Closable>> = HashMap::new();
        let closable = census.rows.into_iter().filter(CensusRow::is_current).filter_map(|row| {
            let (leaving, allowed) = permits.get(&BackendId(row.connection.backend_id))?;
            let (doing, may_close) = judge(&row.connection, || Some(row.activity()), leaving, *allowed, census.hz);
            may_close.then_some(Closable { row, doing })
        });
        for socket in closable.take(CLOSED_BY_NETLINK) {
            found.entry(socket.row.netns).or_default().push(socket);
        }
        Ok(found)
    }

    /// Takes note of what a look found of one drain, and tells.
    fn report(&self, course: &Course, look: &Look, memory: &mut Memory) {
        let Found { seen, remaining, closed } = self.found(course, look);
        let Course { target, drain, .. } = course;
        self.instruments.closed(Closed::Idle, closed.idle);
        self.instruments.closed(Closed::Deadline, closed.late);
        self.instruments.closed(Closed::Inbound, closed.inbound);
        let step = memory.progress.saw(drain, &seen, Timestamp::now());
        let (phase, end) = match step {
            Step::GoesOn(phase) => (phase, None),
            Step::Ends(DrainEnd::Drained) => (Phase::Drained, Some(DrainEnd::Drained)),
            Step::Ends(DrainEnd::DeadlineReached) => (Phase::DeadlineReached, Some(DrainEnd::DeadlineReached)),
        };
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
        let Some(operation) = self.operations.update(&drain.operation, change) else { return };
        if let Some(end) = end {
            memory.ended = true;
            if end == DrainEnd::Drained {
                self.correct();
            }
            // The agent stops when nobody listens; the next one goes on.
            let _ = self.commands.send(Command::DrainEnded(Box::new(DrainEnded {
                target: target.clone(),
                operation: Operation { phase, ..operation },
                end,
            })));
        } else if !memory.phases.contains(&phase) {
            memory.phases.push(phase);
            self.events.record(EventKind::DrainMoved, Some(target.to_string()), &*operation.message);
            let _ = self.commands.send(Command::KeepOperation(Box::new(operation)));
        }
    }

    fn found(&self, course: &Course, look: &Look) -> Found {
        let (mut seen, mut remaining, mut closed) = (Seen::default(), Remaining::default(), ClosedNow::default());
        let (mut in_flight, mut idle, mut datagrams, mut oldest) = (0, 0, 0, 0_u64);
        for backend in &course.backends {
            let Some(remains) = look.remains.get(&backend.id) else { continue };
            seen.total += remains.total();
            if backend.quiet != 0 {
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
        let addresses: BTreeSet<Endpoint> = course.backends.iter().map(|backend| backend.address).collect();
        let mut inbound_in_flight = 0;
        for inbound in addresses.iter().filter_map(|address| look.inbound.get(address)) {
            seen.inbound += u64::from(inbound.in_flight + inbound.idle);
            inbound_in_flight += u64::from(inbound.in_flight);
            closed.inbound += u64::from(inbound.closed);
        }
        seen.complete = look.problems.is_empty();
        remaining.total = in_flight + idle + datagrams;
        remaining.in_flight = Some(in_flight);
        remaining.idle = Some(idle);
        remaining.datagrams = Some(datagrams);
        remaining.inbound = Some(seen.inbound.saturating_sub(closed.inbound));
        remaining.inbound_in_flight = Some(inbound_in_flight);
        let age = clock::monotonic_ns().saturating_sub(oldest);
        remaining.oldest_seconds = (oldest != 0).then_some(age as f64 / 1e9);
        Found { seen, remaining, closed }
    }

    /// The counters say what the sockets say, from here on.
    fn correct(&self) {
        match keeper::lost(&self.meters) {
            Ok(lost) if !lost.is_empty() => drop(self.commands.send(Command::Lost(lost))),
            Ok(_) => {}
            Err(error) => tracing::warn!("the connection gauges cannot be checked: {error:#}"),
        }
    }

    /// Entries of a pass are made anew for the next one.
    fn forget(&self, courses: &[Course]) {
        let backends = || courses.iter().flat_map(|course| &course.backends);
        let ids: Vec<_> = backends().map(|backend| backend.id).collect();
        let addresses: Vec<_> = backends().map(|backend| backend.address).collect();
        self.passes.forget(&ids, &addresses);
    }
}

impl Look {
    fn note_closed(&mut self, socket: &Closable) {
        let remains = self.remains.entry(BackendId(socket.row.connection.backend_id)).or_default();
        match socket.doing {
            Doing::Idle => remains.closed_idle += 1,
            Doing::Datagrams => remains.closed_datagrams += 1,
            Doing::InFlight | Doing::Connecting => remains.closed_late += 1,
        }
    }
}

/// In the namespace that this thread is in. Returns what was closed.
fn close_by_netlink(sockets: &[Closable]) -> Result<Vec<Closable>> {
    let diagnosis = Diagnosis::open()?;
    let mut closed = Vec::new();
    for socket in sockets {
        // One that may be closed because it is quiet must be quiet still.
        if diagnosis.close(&socket.row, socket.doing == Doing::Idle)? {
            closed.push(*socket);
        }
    }
    Ok(closed)
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

/// Whether the namespace that this thread is in has the address. Every namespace has the loopback's: they say nothing.
fn is_local(address: &IpAddr) -> bool {
    !address.is_loopback() && UdpSocket::bind((*address, 0)).is_ok()
}

fn message(phase: Phase, remaining: &Remaining, look: &Look) -> String {
    let count = |figure: Option<u64>| figure.unwrap_or(0);
    let mut text = match phase {
        Phase::Drained => "nothing is left: it may be stopped".to_owned(),
        Phase::DeadlineReached if remaining.total == 0 && count(remaining.inbound) == 0 => {
            "the deadline was over, and what was left is closed".to_owned()
        }
        Phase::DeadlineReached => format!(
            "the deadline is over, and {} steered and {} accepted connections are left",
            remaining.total,
            count(remaining.inbound)
        ),
        _ => format!(
            "{} connections left: {} in flight, {} idle; {} accepted by its backends here",
            remaining.total,
            count(remaining.in_flight),
            count(remaining.idle) + count(remaining.datagrams),
            count(remaining.inbound)
        ),
    };
    if look.by_netlink {
        text += "; closed by netlink: a request that goes out between look and close is lost";
    }
    if look.unreachable > 0 {
        text += &format!("; {} network namespaces cannot be found: their connections stay", look.unreachable);
    }
    for problem in &look.problems {
        text += "; ";
        text += problem;
    }
    text
}
