//! One look at the connections of draining backends: every steered one of the host, and what local backends have accepted.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context, Result};
use sluice_common::{
    drain::{Doing, Draining, EOF, Inbound, NamespaceEntry, Remains, judge},
    records::CensusRow,
    tables::{Endpoint, TCP},
};

use super::{
    ending::{Close, EndedBefore, Ender, Endings, Here},
    namespaces::{CachedNamespace, NamespaceCache},
};
use crate::{
    host::{
        cgroups, clock,
        namespaces::{Namespace, tour},
    },
    kernel::{Meters, Passes, readings::Readings, sock_diag::Diagnosis},
    model::{BackendId, CloseInbound, Drain, Target, UsualPort},
    view::operations::Gone,
};

/// So many namespaces with backends' addresses are always visited.
const FEW: usize = 4;
/// Sockets that one look closes by netlink: the rest waits for the next one.
const CLOSED_BY_NETLINK: usize = 4000;

/// What a look needs.
pub struct Looker {
    pub passes: Passes,
    pub meters: Arc<Meters>,
    /// Processes in it, and below, are those that this agent answers for.
    pub cgroup: PathBuf,
    pub namespaces: NamespaceCache,
    pub ended: EndedBefore,
}

/// A drain that lasts.
pub struct DrainJob {
    pub target: Target,
    pub drain: Drain,
    pub backends: Vec<DrainingBackend>,
}

/// A backend, and what the drain that empties it lets be done to its connections.
#[derive(Clone, Copy)]
pub struct DrainingBackend {
    pub id: BackendId,
    pub address: Endpoint,
    pub draining: Draining,
    /// As in [`Remains`].
    pub allowed: u32,
    pub close_inbound: CloseInbound,
    /// See [`crate::model::Service::keeps_flows`].
    pub keeps_flows: bool,
    /// Why its connections are taken for sessions, all of them.
    pub usual_port: Option<UsualPort>,
}

impl DrainingBackend {
    /// One that has left the configuration: its connections count, and nothing is closed.
    pub fn gone(gone: &Gone) -> Self {
        Self {
            id: BackendId(gone.id),
            address: Endpoint::new(gone.address, TCP),
            draining: Draining::default(),
            allowed: 0,
            close_inbound: CloseInbound::Never,
            keeps_flows: false,
            usual_port: None,
        }
    }
}

/// What one look found and did.
#[derive(Default)]
pub struct Look {
    pub remains: HashMap<BackendId, Remains>,
    pub inbound: HashMap<Endpoint, Inbound>,
    /// Datagram flows that stay.
    pub flows: BTreeMap<BackendId, u64>,
    /// Addresses of backends that some network namespace here has.
    pub local: BTreeSet<IpAddr>,
    /// Network namespaces with something to close that could not be entered.
    pub unreachable: usize,
    /// Whether two steps were needed to close something.
    pub by_netlink: bool,
    pub problems: BTreeSet<String>,
    /// Whether this kernel can close what was accepted, in the way that was asked for.
    pub closes_inbound: bool,
    /// What was ended as its peer would end it.
    pub endings: Endings,
    /// Whether every namespace is visited, be it as empty as it may seem.
    pub thorough: bool,
    /// Namespaces with a backend's address that seem to be as empty as they were.
    pub skipped: usize,
}

/// A socket that may be closed.
#[derive(Clone, Copy)]
struct Closable {
    row: CensusRow,
    doing: Doing,
    draining: Draining,
    /// Whether it counts as closed: not if it had ended before.
    counts: bool,
}

impl Looker {
    /// Counts, closes what may be closed, and counts what local backends have accepted.
    pub fn look(&mut self, jobs: &[DrainJob], thorough: bool) -> Look {
        let mut backends = jobs.iter().flat_map(|job| &job.backends);
        let closes_inbound = self.passes.can_destroy() || backends.all(|backend| backend.allowed & EOF != 0);
        let mut look = Look { thorough, closes_inbound, ..Look::default() };
        if let Err(error) = self.try_look(jobs, &mut look) {
            look.problems.insert(format!("{error:#}"));
        }
        self.ended.follow(&self.passes, &mut look.endings);
        look
    }

    fn try_look(&mut self, jobs: &[DrainJob], look: &mut Look) -> Result<()> {
        let clock = clock::monotonic_ns();
        let mut permits: HashMap<BackendId, (Draining, Remains)> = HashMap::new();
        for backend in jobs.iter().flat_map(|job| &job.backends) {
            let DrainingBackend { id, address, draining, allowed, close_inbound, .. } = *backend;
            // Of two drains one may only remember it.
            if draining == Draining::default() && permits.contains_key(&id) {
                continue;
            }
            let allowed = allowed | self.passes.goes_by();
            let pass = Remains { clock, allowed, terms: draining.terms, ..Remains::default() };
            permits.insert(id, (draining, pass));
            self.passes.begin(id, &pass)?;
            // Every namespace has the loopback's addresses: they say nothing.
            if address.socket_addr().ip().is_loopback() {
                continue;
            }
            let quiet = if close_inbound == CloseInbound::Idle { draining.quiet } else { 0 };
            let entry = Inbound { quiet, backend_id: id.0, terms: draining.terms, ..Inbound::default() };
            // Of two backends that share it, the one that lets less be closed.
            let held = look.inbound.entry(address).or_insert(entry);
            if held.quiet != 0 && (quiet == 0 || quiet > held.quiet) {
                *held = entry;
            }
        }
        for (address, inbound) in &look.inbound {
            self.passes.begin_inbound(address, inbound)?;
        }
        let places = self.passes.survey()?;
        let sockets =
            if self.passes.can_destroy() || places.is_empty() { HashMap::new() } else { self.closable(&permits)? };
        look.by_netlink = sockets.values().flatten().any(|socket| socket.counts);
        self.visit(places, &sockets, &permits, look);
        for (id, remains) in permits.keys().map(|id| (*id, self.passes.remains(*id))) {
            // What netlink has closed is counted already.
            let closed = look.remains.get(&id).copied().unwrap_or_default();
            let mut remains = remains?;
            remains.closed_idle += closed.closed_idle + look.endings.callers.get(&id).copied().unwrap_or(0);
            remains.closed_late += closed.closed_late;
            remains.closed_datagrams += closed.closed_datagrams;
            look.remains.insert(id, remains);
        }
        for (address, inbound) in &mut look.inbound {
            *inbound = self.passes.inbound(address)?;
            inbound.closed += look.endings.accepted.get(address).copied().unwrap_or(0);
        }
        if jobs.iter().flat_map(|job| &job.backends).any(|backend| backend.keeps_flows) {
            look.flows = self.meters.flows().context("counting flows of datagrams")?;
        }
        Ok(())
    }

    /// Goes to every network namespace in which something is to be closed, or which has the address of a backend.
    fn visit(
        &mut self,
        places: Vec<(u64, NamespaceEntry)>,
        sockets: &HashMap<u64, Vec<Closable>>,
        permits: &HashMap<BackendId, (Draining, Remains)>,
        look: &mut Look,
    ) {
        let addresses: BTreeSet<IpAddr> = look.inbound.keys().map(|address| address.socket_addr().ip()).collect();
        let (threads, unlisted) = cgroups::threads(&self.cgroup);
        let (known, hidden) = Namespace::of_tasks([std::process::id()].into_iter().chain(threads));
        if unlisted > 0 {
            look.problems.insert(format!(
                "what was accepted in {unlisted} cgroups is not known: their threads cannot be listed"
            ));
        }
        if hidden > 0 {
            look.problems.insert(format!(
                "what {hidden} threads have accepted is not known: the agent needs CAP_SYS_PTRACE and the host's process \
                 ids (hostPID)"
            ));
        }
        let mut places: BTreeMap<u64, NamespaceEntry> = places.into_iter().collect();
        let mut wanted = Vec::new();
        for (namespace, home) in known.iter().zip(self.namespaces.of(&known, &addresses, look.thorough)) {
            match home.map(|home| (home, places.remove(&home.cookie).is_some())) {
                Ok((home, closes)) if closes || home.is_local => wanted.push((namespace, home, closes)),
                Ok(_) => {}
                Err(error) => drop(look.problems.insert(format!("{error:#}"))),
            }
        }
        look.local = self.namespaces.here();
        if !look.thorough && wanted.len() > FEW {
            let all = wanted.len();
            wanted.retain(|(_, home, closes)| *closes || !self.namespaces.are_empty(home));
            look.skipped = all - wanted.len();
        }
        let mut wanted: Vec<_> = wanted.into_iter().map(|(namespace, home, _)| (namespace, home)).collect();
        // Those of processes outside or out of sight, and of sockets that outlived every process inside.
        let others: Vec<_> = places
            .iter()
            .filter_map(|(cookie, place)| {
                Some((Namespace::with_cookie(*cookie, place.inode, place.pid)?, CachedNamespace::of(*cookie)))
            })
            .collect();
        look.unreachable = places.len() - others.len();
        wanted.extend(others.iter().map(|(namespace, home)| (namespace, *home)));
        let (passes, namespaces) = (&self.passes, &mut self.namespaces);
        let mut before = 0;
        let mut ender = Ender::new(passes, permits, &look.inbound);
        let closed = tour(wanted, |home| {
            let mut here = Here::default();
            passes.visit(|row| ender.end(row, &mut here))?;
            let accepted = passes.accepted(look.inbound.keys())?;
            namespaces.note(&home, accepted == before);
            before = accepted;
            Ok(sockets.get(&home.cookie).map(|sockets| close_by_netlink(passes, sockets)))
        });
        look.endings = ender.finish();
        for closed in closed {
            let problem = match closed {
                Ok(Some((closed, problem))) => {
                    closed.iter().filter(|socket| socket.counts).for_each(|socket| look.note_closed(socket));
                    problem
                }
                Ok(None) => None,
                Err(error) => Some(error),
            };
            look.problems.extend(problem.map(|error| format!("{error:#}")));
        }
    }

    /// Sockets that may be closed, by their network namespaces: for kernels on which a visit cannot close.
    fn closable(&self, permits: &HashMap<BackendId, (Draining, Remains)>) -> Result<HashMap<u64, Vec<Closable>>> {
        let census = self.meters.census()?;
        let mut found: HashMap<u64, Vec<Closable>> = HashMap::new();
        let closable = census.rows.into_iter().filter(CensusRow::is_current).filter_map(|row| {
            let (draining, pass) = permits.get(&BackendId(row.connection.backend_id))?;
            let activity = || Some(row.activity(census.hz));
            let (doing, may_close) = judge(&row.connection, activity, draining, pass, census.hz);
            let close = self.ended.close(&row, doing, pass.allowed);
            let counts = close == Close::Counted;
            (may_close && close != Close::No).then_some(Closable { row, doing, draining: *draining, counts })
        });
        for socket in closable.take(CLOSED_BY_NETLINK) {
            found.entry(socket.row.netns).or_default().push(socket);
        }
        Ok(found)
    }

    /// Entries of a pass are made anew for the next one.
    pub fn forget(&self, jobs: &[DrainJob]) {
        let backends = || jobs.iter().flat_map(|job| &job.backends);
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
            Doing::InFlight | Doing::Connecting | Doing::Session => remains.closed_late += 1,
        }
    }
}

/// In the namespace that this thread is in. Returns what was closed, and what ended it early.
fn close_by_netlink(passes: &Passes, sockets: &[Closable]) -> (Vec<Closable>, Option<anyhow::Error>) {
    let mut closed = Vec::new();
    let mut close = || -> Result<()> {
        let diagnosis = Diagnosis::open()?;
        for socket in sockets {
            let is_leaving = passes.is_leaving(BackendId(socket.row.connection.backend_id), socket.draining);
            // One that may be closed because it is quiet must be quiet still.
            if is_leaving && diagnosis.close(&socket.row, socket.doing == Doing::Idle)? {
                closed.push(*socket);
            }
        }
        Ok(())
    };
    let problem = close().err();
    (closed, problem)
}
