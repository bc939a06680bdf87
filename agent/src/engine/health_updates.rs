//! What probes, reports and rules say of backends, taken in: first the kernel, then the store, then the tables at leisure.
//! However many backends it is about, it is one change, one transaction, and one event for each service.

use std::sync::Arc;

use super::{steering::Steering, warmups::Warming};
use crate::{
    host::clock,
    model::{Backend, Change, HealthUpdate, Name, Service, State, Touched},
    plan::DataPlane,
    source::store::Batch,
    view::events::EventKind,
};

/// Names in one message.
const NAMED: usize = 5;
/// A service and those of its backends that something has become of.
type OfService<'a> = (&'a Arc<Service>, Vec<&'a Backend>);

/// Services with an event of their own; of more, one event tells.
const TOLD: usize = 5;

impl<M: DataPlane> Steering<M> {
    /// What closes holds at once, and what opens follows with the tables.
    pub(super) fn take_in(&mut self, updates: Vec<HealthUpdate>) {
        let (next, touched) = match self.next(&[Change::UpdateHealth { updates }]) {
            Ok((next, touched, _)) => (next, touched),
            Err(error) => return tracing::error!(%error, "updates cannot be taken in"),
        };
        if touched.is_empty() {
            return;
        }
        let warming = self.warm_up(&next, &touched, &clock::stamp());
        let services = touched.services.iter().filter_map(|id| next.service_by_id(*id).cloned());
        // Where something opens, it does before anything closes: they may be all there is.
        let (opening, closing): (Vec<Arc<Service>>, Vec<_>) =
            services.partition(|service| opens(&self.state, &next, service));
        let closing = self.plan_closing(&next, &closing);
        let mut written = self.run_all(&closing);
        let mut built = Vec::with_capacity(opening.len());
        for service in opening {
            match self.program_service(&next, &warming.ramps, &service) {
                Ok(table) => built.push((service, table)),
                Err(error) => written = Err(error),
            }
        }
        if let Err(error) = written.and_then(|()| self.show(built)) {
            // What is so is so, whatever the kernel says: the tables are tried again.
            self.failed(&error);
        }
        let before = self.hold(next, warming, &touched);
        self.stale.extend(&touched.services);
        self.tell_health(&before, &touched);
        self.publish();
    }

    /// Makes `next` the state and saves it if that can be done. What cannot be saved is found again after a restart, so
    /// that a full disk keeps no dead backend open; the store writes it with the next change that it can write. Returns
    /// the state before.
    fn hold(&mut self, next: State, warming: Warming, touched: &Touched) -> State {
        let before = std::mem::replace(&mut self.state, next);
        self.ramps = warming.ramps;
        let extras: Vec<_> = warming.records.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        let batch = Batch { touched: std::slice::from_ref(touched), extras: &extras, ..Batch::default() };
        if let Err(error) = self.store.commit_batch(&self.state, batch) {
            self.instruments.kernel_failed();
            tracing::error!("what was found of backends is not saved yet: {error:#}");
        }
        self.tell_warmups(EventKind::WarmupStarted, &warming.followed.begun);
        before
    }

    /// Tells what became of the health of backends, and of panics.
    pub(super) fn tell_health(&self, before: &State, touched: &Touched) {
        let mut told: Vec<(EventKind, Vec<OfService<'_>>)> = Vec::new();
        for service in touched.services.iter().filter_map(|id| self.state.service_by_id(*id)) {
            let Some(former) = before.service_by_id(service.id) else { continue };
            let mut of_kinds: Vec<(EventKind, Vec<&Backend>)> = Vec::new();
            let pairs = match former.backends.iter().map(|b| b.id).eq(service.backends.iter().map(|b| b.id)) {
                true => former.backends.iter().zip(&service.backends).collect::<Vec<_>>(),
                false => Vec::new(),
            };
            for (was, is) in pairs {
                for kind in kinds(was, is) {
                    match of_kinds.iter_mut().find(|(held, _)| *held == kind) {
                        Some((_, backends)) => backends.push(is),
                        None => of_kinds.push((kind, vec![is])),
                    }
                }
            }
            let panics = (before.panics(former), self.state.panics(service));
            match panics {
                (false, true) => of_kinds.push((EventKind::PanicStarted, Vec::new())),
                (true, false) => of_kinds.push((EventKind::PanicEnded, Vec::new())),
                (true, true) | (false, false) => {}
            }
            for (kind, backends) in of_kinds {
                match told.iter_mut().find(|(held, _)| *held == kind) {
                    Some((_, services)) => services.push((service, backends)),
                    None => told.push((kind, vec![(service, backends)])),
                }
            }
        }
        for (kind, services) in told {
            for (service, backends) in &services {
                self.instruments.health_changed(service.name.as_str(), kind, backends.len().max(1));
            }
            if services.len() > TOLD {
                self.tell_of_many(kind, &services);
                continue;
            }
            for (service, backends) in services {
                let names: Vec<&Name> = backends.iter().map(|backend| &backend.name).collect();
                let why = backends.first().and_then(|backend| why(kind, backend)).map(|why| format!(": {why}"));
                let message = match kind {
                    EventKind::PanicStarted => {
                        let threshold = service.health_policy.panic_threshold;
                        format!("less than {threshold} % of the backends are healthy: all of them serve")
                    }
                    EventKind::PanicEnded => "enough backends are healthy again: only they serve".to_owned(),
                    _ => format!("{}{}", list(&names), why.unwrap_or_default()),
                };
                self.note(kind, Some(object(service, &names)), message);
            }
        }
    }

    fn tell_of_many(&self, kind: EventKind, services: &[OfService<'_>]) {
        let backends: usize = services.iter().map(|(_, backends)| backends.len()).sum();
        let names: Vec<&Name> = services.iter().map(|(service, _)| &service.name).collect();
        let first = services.iter().find_map(|(_, backends)| why(kind, backends.first()?));
        let first = first.map(|why| format!("; the first: {why}")).unwrap_or_default();
        let what = match backends {
            0 => String::new(),
            backends => format!("{backends} backends of "),
        };
        self.note(kind, None, format!("{what}{} services ({}){first}", services.len(), list(&names)));
    }
}

/// Whether the same backends take connections after a change that only updates make, and as many.
pub(super) fn steer_alike(before: &State, after: &State, touched: &Touched) -> bool {
    let is_alike = |service: &Service| {
        let Some(former) = before.service_by_id(service.id) else { return false };
        let (was, is) = (before.panics(former), after.panics(service));
        let is_trial = |backend: &Backend| backend.health.as_ref().is_some_and(|health| health.is_on_trial());
        let mut pairs = former.backends.iter().zip(&service.backends);
        pairs.all(|(former, backend)| (former.is_fit(was), is_trial(former)) == (backend.is_fit(is), is_trial(backend)))
    };
    touched.services.iter().all(|id| after.service_by_id(*id).is_some_and(|service| is_alike(service)))
}

/// Whether some backend of the service may take connections that could not before.
fn opens(before: &State, after: &State, service: &Service) -> bool {
    let Some(former) = before.service_by_id(service.id) else { return false };
    let (was, is) = (before.panics(former), after.panics(service));
    let mut pairs = former.backends.iter().zip(&service.backends);
    pairs.any(|(former, backend)| backend.is_fit(is) && !former.is_fit(was))
}

/// What differs in the health of a backend.
fn kinds(was: &Backend, is: &Backend) -> Vec<EventKind> {
    let state = |backend: &Backend| {
        backend
            .health
            .as_ref()
            .map_or((true, false, false), |health| (health.is_ready(), health.is_ejected(), health.is_on_trial()))
    };
    let ((ready_before, out_before, trial_before), (ready, out, trial)) = (state(was), state(is));
    let mut kinds = Vec::new();
    match (ready_before, ready) {
        (true, false) => kinds.push(EventKind::BackendUnready),
        (false, true) => kinds.push(EventKind::BackendReady),
        (true, true) | (false, false) => {}
    }
    match (out_before || trial_before, out, trial) {
        (_, true, _) if !out_before => kinds.push(EventKind::Ejected),
        (_, _, true) if !trial_before => kinds.push(EventKind::TrialStarted),
        (true, false, false) => kinds.push(EventKind::EjectionEnded),
        _ => {}
    }
    kinds
}

/// The cause and its figures.
fn why(kind: EventKind, backend: &Backend) -> Option<String> {
    let health = backend.health.as_ref()?;
    match kind {
        EventKind::BackendUnready => health.why_unready(),
        EventKind::Ejected | EventKind::TrialStarted => Some(health.ejection.as_ref()?.message.clone()),
        _ => None,
    }
}

/// `shop/n1` when it is about one backend, else `service/shop`.
pub(super) fn object(service: &Service, backends: &[&Name]) -> String {
    match backends {
        [backend] => format!("{}/{backend}", service.name),
        _ => format!("service/{}", service.name),
    }
}

/// The first few, for a message.
pub(super) fn list(names: &[&Name]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| name.as_str()).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
