//! Follows the published state: which backends this agent probes, and whose leases run.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ProbedBackend, Scheduler, TICK,
    timers::{ProbeDue, Wake, within},
};
use crate::{
    control::{
        peers::is_prober,
        readiness::{ReadinessEvent, ReadinessTracker},
    },
    engine::workers::changes::ServiceChange,
    host::clock,
    model::{
        Backend, BackendId, HealthReport, HealthUpdate, ProbeFrom, Readiness, Report, Reported, Service, Span, State,
        Unready,
    },
    probe::Subject,
    settings::Probing,
};

/// A walk over the services takes no more than one part in so many of the time.
const SHARE: u32 = 20;
/// So many new backends are probed at once; more of them one after the other, this far apart on average.
const AT_ONCE: usize = 16;
const APART: Duration = Duration::from_micros(250);
/// How late the end of a lease may be noticed after the host has slept: timers sleep with it.
const LATENESS: Duration = Duration::from_secs(5);

/// A report that has to be renewed.
pub(super) struct Lease {
    /// That of its timer.
    epoch: u64,
    report: Report,
    /// Whether the engine was told that it was not renewed in time.
    lapsed: bool,
}

/// A backend whose probes are to begin.
struct NewBackend {
    backend: BackendId,
    epoch: u64,
    period: Duration,
    /// It serves already: there is no hurry.
    serves: bool,
}

impl Scheduler {
    pub(super) fn follow(&mut self) {
        let start = Instant::now();
        let state = self.published.borrow_and_update().state.clone();
        let changes = self.changes.take(&state);
        self.forget(&changes);
        let mut new = Vec::new();
        for service in changes.iter().filter(|change| concerns(change)).filter_map(|change| change.after.as_deref()) {
            service.backends.iter().for_each(|backend| self.take(&state, service, backend, &mut new));
        }
        self.begin(&new);
        self.follow_at = Instant::now() + start.elapsed() * SHARE;
    }

    /// Backends that are gone are not probed any more.
    fn forget(&mut self, changes: &[ServiceChange]) {
        if self.probed.is_empty() && self.leases.is_empty() && self.released.is_empty() {
            return;
        }
        let backends = |service: &Arc<Service>| service.backends.iter().map(|one| one.id).collect::<Vec<_>>();
        let stay: HashSet<_> = changes.iter().filter_map(|change| change.after.as_ref()).flat_map(backends).collect();
        let before = changes.iter().filter_map(|change| change.before.as_ref()).flat_map(backends);
        for backend in before.filter(|backend| !stay.contains(backend)) {
            self.probed.remove(&backend);
            self.leases.remove(&backend);
            self.released.remove(&backend);
        }
    }

    /// Sees to one backend of a service that has changed.
    fn take(&mut self, state: &State, service: &Service, backend: &Backend, new: &mut Vec<NewBackend>) {
        let reason = reason(backend);
        let node = state.node_by_id(backend.node).map(|node| node.name.clone());
        let readiness = service.readiness(backend).filter(|readiness| readiness.is_probed());
        let mine = readiness.filter(|readiness| is_mine(&self.probing, state, service, backend, readiness));
        self.hold_lease(backend);
        let Some(readiness) = mine else {
            self.probed.remove(&backend.id);
            return self.release(backend.id, reason.filter(|_| readiness.is_some()));
        };
        self.released.remove(&backend.id);
        let asked = reason.as_ref().and_then(|reason| reason.asked);
        // A restore that asks anew begins anew: probes that are under way saw what was there before it.
        let is_same = |known: &ProbedBackend| {
            let subject = &known.subject;
            asked.is_none_or(|asked| known.asked == Some(asked))
                && subject.service == service.name
                && subject.backend == backend.name
                && subject.address == backend.address
                && subject.node == node
                && *subject.readiness == *readiness
        };
        if self.probed.get(&backend.id).is_some_and(is_same) {
            return self.track(backend.id, ReadinessEvent::Published(reason));
        }
        self.epoch += 1;
        let (epoch, period) = (self.epoch, readiness.period.duration());
        new.push(NewBackend { backend: backend.id, epoch, period, serves: reason.is_none() });
        let tracker = ReadinessTracker::new(readiness, reason, clock::stamp());
        let subject = Arc::new(Subject {
            service: service.name.clone(),
            backend: backend.name.clone(),
            node,
            address: backend.address,
            readiness: Arc::new(readiness.clone()),
        });
        self.probed.insert(backend.id, ProbedBackend { epoch, asked, subject, tracker, delaying: false });
    }

    /// Plans the first probes: at once where callers wait for readiness, within a period where the backend serves.
    fn begin(&mut self, new: &[NewBackend]) {
        let now = Instant::now();
        let waiting = new.iter().filter(|new| !new.serves).count();
        let spread =
            if waiting <= AT_ONCE { Duration::ZERO } else { APART * u32::try_from(waiting).unwrap_or(u32::MAX) };
        for NewBackend { backend, epoch, period, serves } in new {
            let at = now + within(if *serves { *period } else { spread.min(*period) });
            self.timers.add(at, ProbeDue { backend: *backend, epoch: *epoch, wake: Wake::Probe });
        }
    }

    /// Clears the reason of a backend that others probe now, for nobody else would.
    fn release(&mut self, backend: BackendId, reason: Option<Unready>) {
        let Some(Unready { asked, .. }) = reason else {
            self.released.remove(&backend);
            return;
        };
        if self.released.insert(backend, asked) != Some(asked) {
            self.send(HealthUpdate { backend, report: HealthReport::Probe { reason: None, asked } });
        }
    }

    /// Sees to the lease of a backend's report, if that has one.
    fn hold_lease(&mut self, backend: &Backend) {
        let Some(report) = leased(backend) else {
            self.leases.remove(&backend.id);
            return;
        };
        if let Some(known) = self.leases.get_mut(&backend.id) {
            if known.report == *report {
                return;
            }
            // The timer that it has comes early enough.
            if !known.lapsed && known.report.lease <= report.lease {
                known.report = report.clone();
                return;
            }
        }
        self.epoch += 1;
        let (backend, epoch) = (backend.id, self.epoch);
        self.leases.insert(backend, Lease { epoch, report: report.clone(), lapsed: false });
        self.timers.add(Instant::now(), ProbeDue { backend, epoch, wake: Wake::Lease });
    }

    /// Tells the engine of a lease that is over.
    pub(super) fn check_lease(&mut self, backend: BackendId, epoch: u64) {
        let Some(lease) = self.leases.get_mut(&backend).filter(|lease| lease.epoch == epoch) else { return };
        let whole = lease.report.lease.map_or(Duration::ZERO, Span::duration);
        let left = lease.report.since.left(whole, &clock::stamp());
        if left.is_zero() {
            lease.lapsed = true;
            let report = HealthReport::Report(Some(lease.report.lapsed()));
            return self.send(HealthUpdate { backend, report });
        }
        self.timers.add(Instant::now() + left.min(LATENESS).max(TICK), ProbeDue { backend, epoch, wake: Wake::Lease });
    }
}

/// Whether there is anything to do, or was, about a service.
fn concerns(change: &ServiceChange) -> bool {
    let is_own = |backend: &Backend| backend.own.as_ref().is_some_and(|own| own.readiness.is_some());
    let has_any = |service: &Arc<Service>| {
        service.health_policy.readiness.is_some()
            || service.backends.iter().any(|one| one.health.is_some() || is_own(one))
    };
    change.before.iter().chain(&change.after).any(has_any)
}

/// What keeps the backend unready as probes go.
fn reason(backend: &Backend) -> Option<Unready> {
    backend.health.as_ref().and_then(|health| health.probe.clone())
}

/// A report that has to be renewed.
fn leased(backend: &Backend) -> Option<&Report> {
    let report = backend.health.as_ref()?.report.as_ref()?;
    (report.state == Reported::Ready && report.lease.is_some()).then_some(report)
}

fn is_mine(probing: &Probing, state: &State, service: &Service, backend: &Backend, readiness: &Readiness) -> bool {
    let own = probing.node.as_deref();
    match readiness.from {
        ProbeFrom::Everywhere => true,
        ProbeFrom::Node => state.node_by_id(backend.node).is_some_and(|node| own == Some(node.name.as_str())),
        ProbeFrom::Peers if probing.peers.is_empty() => true,
        ProbeFrom::Peers => own.is_some_and(|own| {
            is_prober(own, &probing.peers, probing.probers, service.name.as_str(), backend.name.as_str())
        }),
    }
}
