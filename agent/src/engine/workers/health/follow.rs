//! Following the published state: which backends are to be probed, and whose leases run.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    CONFIRM, ProbedBackend, Review, Scheduler, TICK,
    timers::{Timer, Wake},
};
use crate::{
    control::{peers::is_prober, readiness::ReadinessTracker},
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

/// A backend whose probes are to begin.
struct New {
    backend: BackendId,
    epoch: u64,
    period: Duration,
    /// It serves already: there is no hurry.
    serves: bool,
}

impl Scheduler {
    pub(super) fn follow(&mut self) {
        let start = Instant::now();
        let published = self.published.borrow_and_update().clone();
        let state = &published.state;
        let is_known =
            |service: &&Arc<Service>| self.services.get(&service.id).is_some_and(|known| Arc::ptr_eq(known, service));
        let changed: Vec<_> = state.services().filter(|service| !is_known(service)).cloned().collect();
        let mut before = Vec::new();
        for service in &changed {
            before.extend(self.services.insert(service.id, service.clone()));
        }
        if self.services.len() != state.service_count() {
            let gone = self.services.extract_if(|id, _| state.service_by_id(*id).is_none());
            before.extend(gone.map(|(_, service)| service));
        }
        self.forget(&before, &changed);
        let mut new = Vec::new();
        for service in changed.iter().filter(|service| concerns(service)) {
            service.backends.iter().for_each(|backend| self.take(state, service, backend, &mut new));
        }
        self.begin(&new);
        self.follow_at = Instant::now() + start.elapsed() * SHARE;
    }

    /// Backends that are gone are not probed any more.
    fn forget(&mut self, before: &[Arc<Service>], after: &[Arc<Service>]) {
        if self.probed.is_empty() && self.reviews.is_empty() {
            return;
        }
        let stay: HashSet<_> = after.iter().flat_map(|service| &service.backends).map(|backend| backend.id).collect();
        for backend in before.iter().flat_map(|service| &service.backends) {
            if !stay.contains(&backend.id) {
                self.probed.remove(&backend.id);
                self.reviews.remove(&backend.id);
            }
        }
    }

    /// Sees to one backend of a service that has changed.
    fn take(&mut self, state: &State, service: &Service, backend: &Backend, new: &mut Vec<New>) {
        let told = told(backend);
        let node = state.node_by_id(backend.node).map(|node| node.name.clone());
        let readiness = service.readiness(backend).filter(|readiness| readiness.is_probed());
        let mine = readiness.filter(|readiness| is_mine(&self.probing, state, service, backend, readiness));
        let release = mine.is_none() && readiness.is_some() && told.is_some();
        self.plan_review(backend, release);
        let Some(readiness) = mine else {
            self.probed.remove(&backend.id);
            return;
        };
        let known = self.probed.get_mut(&backend.id);
        let is_same = |subject: &Subject| {
            subject.service == service.name
                && subject.backend == backend.name
                && subject.address == backend.address
                && subject.node == node
                && *subject.readiness == *readiness
        };
        let told = match known {
            Some(known) if is_same(&known.subject) => {
                // Somebody else's word, such as a change of the kind and back: it goes on from there.
                known.shown = known.machine.told() == told.as_ref();
                if !known.shown && !known.confirming {
                    known.machine.adopt(told);
                }
                return;
            }
            Some(known) if known.confirming => known.machine.told().cloned(),
            Some(_) | None => told,
        };
        self.epoch += 1;
        let (epoch, period) = (self.epoch, readiness.period.duration());
        new.push(New { backend: backend.id, epoch, period, serves: told.is_none() });
        let machine = ReadinessTracker::new(readiness, told, clock::stamp());
        let subject = Arc::new(Subject {
            service: service.name.clone(),
            backend: backend.name.clone(),
            node,
            address: backend.address,
            readiness: Arc::new(readiness.clone()),
        });
        self.probed.insert(
            backend.id,
            ProbedBackend { epoch, subject, machine, delaying: false, confirming: false, shown: true },
        );
    }

    /// Those that wait for readiness first.
    fn begin(&mut self, new: &[New]) {
        let now = Instant::now();
        let waiting = new.iter().filter(|new| !new.serves).count();
        let spread =
            if waiting <= AT_ONCE { Duration::ZERO } else { APART * u32::try_from(waiting).unwrap_or(u32::MAX) };
        for New { backend, epoch, period, serves } in new {
            let at = now + self.jitter.within(if *serves { *period } else { spread.min(*period) });
            self.timers.add(Timer { at, backend: *backend, epoch: *epoch, wake: Wake::Probe });
        }
    }

    fn plan_review(&mut self, backend: &Backend, release: bool) {
        let report = leased(backend).cloned();
        if report.is_none() && !release {
            self.reviews.remove(&backend.id);
            return;
        }
        self.epoch += 1;
        let lease = |report: &Option<Report>| report.as_ref().and_then(|report| report.lease);
        let known = self.reviews.get(&backend.id).filter(|known| {
            // Its timer is early enough.
            lease(&known.report) <= lease(&report) && known.release == release
        });
        let known = known.map(|known| known.epoch);
        let epoch = known.unwrap_or(self.epoch);
        self.reviews.insert(backend.id, Review { epoch, report, release });
        if known.is_none() {
            self.timers.add(Timer { at: Instant::now(), backend: backend.id, epoch, wake: Wake::Review });
        }
    }

    /// Notices the end of a lease, and clears a reason that nobody else would clear.
    pub(super) fn review(&mut self, backend: BackendId, epoch: u64) {
        let Some(review) = self.reviews.get(&backend).filter(|review| review.epoch == epoch) else { return };
        let Review { report, release, .. } = review;
        let left = report.as_ref().map(|report| {
            let lease = report.lease.map_or(Duration::ZERO, Span::duration);
            report.since.left(lease, &clock::stamp())
        });
        let lapsed = report.as_ref().filter(|_| left == Some(Duration::ZERO)).map(Report::lapsed);
        let cleared = release.then_some(HealthReport::Probe(None));
        // What is told here is told again until it shows.
        let is_told = lapsed.is_some() || cleared.is_some();
        let after = if is_told { CONFIRM } else { left.unwrap_or(CONFIRM).min(LATENESS).max(TICK) };
        for report in lapsed.map(|report| HealthReport::Report(Some(report))).into_iter().chain(cleared) {
            self.send(HealthUpdate { backend, report });
        }
        self.timers.add(Timer { at: Instant::now() + after, backend, epoch, wake: Wake::Review });
    }
}

/// Whether there is anything to do about a service.
fn concerns(service: &Service) -> bool {
    let is_own = |backend: &Backend| backend.own.as_ref().is_some_and(|own| own.readiness.is_some());
    service.health_policy.readiness.is_some() || service.backends.iter().any(|one| one.health.is_some() || is_own(one))
}

fn told(backend: &Backend) -> Option<Unready> {
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
