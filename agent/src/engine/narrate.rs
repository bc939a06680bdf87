//! What the engine tells of what it has done: events for people, and the counts of the same in metrics.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{
    audit::{self, AuditEntry},
    event_loop::Engine,
};
use crate::{
    model::{
        Backend, BackendId, Change, Name, Service, ServiceId, State, Target, Touched, Unready, document::DocumentKey,
        quiet,
    },
    plan::DataPlane,
    source::{reconcile::DocumentProblem, store::AppliedMark},
    telemetry::Source,
    view::{events::EventKind, listeners::warnings},
};

/// Names in one message.
const NAMED: usize = 5;
/// Services with an event of their own; of more, one event tells.
const TOLD: usize = 5;
/// A service and those of its backends that something has become of.
type OfService<'a> = (&'a Service, Vec<&'a Backend>);

impl<M: DataPlane> Engine<M> {
    /// What the changes of a request have come to. `before`: the state before them.
    pub(super) fn told(&self, changes: &[Change], before: &State) -> Vec<AuditEntry> {
        let told = changes.iter().filter_map(|change| {
            Some(match change {
                Change::PutService { document, .. } => {
                    let name = &document.metadata.name;
                    let is_new = before.service(name.as_str()).is_none();
                    let kind = if is_new { EventKind::ServiceCreated } else { EventKind::ServiceChanged };
                    (kind, format!("service/{name}"), "its document was applied".into())
                }
                Change::PatchService { service, .. } => {
                    (EventKind::ServiceChanged, format!("service/{service}"), "its document was patched".into())
                }
                Change::DeleteService { service, .. } => {
                    (EventKind::ServiceDeleted, format!("service/{service}"), "deleted".into())
                }
                Change::PatchBackend { service, backend, patch, .. } => {
                    (EventKind::BackendChanged, format!("{service}/{backend}"), patched(patch))
                }
                Change::PatchGroup { service, group, patch, .. } => {
                    let message = format!("group {group} patched with {patch}");
                    (EventKind::ServiceChanged, format!("service/{service}"), message)
                }
                Change::PutNode { document } => {
                    let name = &document.metadata.name;
                    let is_new = before.node(name.as_str()).is_none_or(|node| !node.declared);
                    let kind = if is_new { EventKind::NodeCreated } else { EventKind::NodeChanged };
                    (kind, format!("node/{name}"), "declared".into())
                }
                Change::DeleteNode { node } | Change::UndeclareNode { node } => {
                    (EventKind::NodeDeleted, format!("node/{node}"), "no longer declared".into())
                }
                Change::Zero { target, zero, .. } => {
                    let reason = if zero.reason.is_empty() { "no reason given" } else { &zero.reason };
                    let owner = self.state.zero(target).map_or(&*zero.owner, |held| &*held.owner);
                    (EventKind::Zeroed, target.to_string(), format!("zeroed by {owner}: {reason}"))
                }
                Change::Restore { target } => (EventKind::Restored, target.to_string(), "restored".into()),
                // Told with all that is known of it.
                Change::EndDrains { .. } | Change::UpdateHealth { .. } => return None,
            })
        });
        let by = |(kind, object, message)| AuditEntry { by: self.by.clone(), kind, object, message };
        told.map(by).collect()
    }

    /// Warns of new frontends that somebody on this host listens on.
    pub(super) fn tell_listeners(&self, before: &State, touched: &Touched) {
        for service in touched.services.iter().filter_map(|id| self.state.service_by_id(*id)) {
            for warning in warnings(before.service_by_id(service.id).map(AsRef::as_ref), service) {
                tracing::warn!(service = %service.name, "{warning}");
                self.note(EventKind::FrontendInUse, Some(format!("service/{}", service.name)), warning);
            }
        }
    }

    /// Which documents of files are in force now, and which are gone.
    pub(super) fn told_of_documents(&self, marks: &[AppliedMark]) -> Vec<AuditEntry> {
        // What another file brings now has moved.
        let is_there = |key: &DocumentKey| match key {
            DocumentKey::Service(name) => self.state.service(name.as_str()).is_some(),
            DocumentKey::Node(name) => self.state.node(name.as_str()).is_some_and(|node| node.declared),
        };
        let marks = marks.iter().filter(|mark| mark.hash.is_some() || !is_there(&mark.document));
        let told = marks.map(|mark| {
            let (key, file) = (&mark.document, mark.file.display());
            let (kind, message) = match (mark.hash, key) {
                (Some(_), _) => (EventKind::SourceApplied, format!("{key} from {file}")),
                (None, DocumentKey::Node(_)) => (EventKind::NodeDeleted, format!("no longer in {file}")),
                (None, DocumentKey::Service(_)) => (EventKind::ServiceDeleted, format!("no longer in {file}")),
            };
            let by = format!("file {file}").replace(char::is_control, "?");
            AuditEntry { by: Some(by.into()), kind, object: key.to_string(), message }
        });
        told.collect()
    }

    /// Tells what has come of a change that is in force.
    pub(super) fn tell(&self, told: Vec<AuditEntry>) {
        audit::log(&told);
        for AuditEntry { by, kind, object, message } in told {
            self.events.record_by(by, kind, Some(object), message);
        }
    }

    /// Tells which documents of files are not in force, and why.
    pub(super) fn tell_problems(&mut self, problems: Vec<DocumentProblem>) {
        for problem in problems {
            self.problems.insert((problem.file.clone(), problem.document.clone()), problem.message.clone());
            let place = problem.document.map(|document| format!(" ({document})")).unwrap_or_default();
            let message = format!("{}{place}: {}", problem.file.display(), problem.message);
            self.instruments.refused(Source::File);
            tracing::error!("a document is not applied, what was there before stays: {message}");
            self.note(EventKind::SourceFailed, None, message);
        }
    }

    /// Tells of zeros that went with their backends: should such a backend come again, it takes connections.
    pub(super) fn tell_gone(&self, gone: Vec<Target>) {
        for target in gone.into_iter().filter(|target| !self.state.is_zeroed(target)) {
            let message = "its backend left the configuration, and its zero with it";
            self.note(EventKind::Restored, Some(target.to_string()), message);
        }
    }

    /// Tells which drains have been cancelled. Last of all that a commit tells: whoever waits for a drain finds
    /// everything else done.
    pub(super) fn tell_cancelled(&mut self, cancelled: Vec<(Target, String)>) {
        for (target, operation) in cancelled {
            self.cancel(&target, &operation);
        }
    }

    /// Tells which backends begin to warm up or are warm, one event for each service.
    pub(super) fn tell_warmups(&self, kind: EventKind, backends: &[BackendId]) {
        let mut of_services: BTreeMap<ServiceId, Vec<(&Name, Option<u32>)>> = BTreeMap::new();
        for id in backends {
            if let Some((service, backend)) = self.state.backend(*id) {
                let millis =
                    service.warmup(backend).map(|warmup| warmup.delay.as_millis() + warmup.duration.as_millis());
                of_services.entry(service.id).or_default().push((&backend.name, millis));
            }
        }
        for (id, backends) in of_services {
            let Some(service) = self.state.service_by_id(id) else { continue };
            let names: Vec<_> = backends.iter().map(|(name, _)| *name).collect();
            let longest = backends.iter().filter_map(|(_, millis)| *millis).max().unwrap_or(0);
            let (object, names) = (object(service, &names), list(&names));
            let message = match kind {
                EventKind::WarmupStarted => format!("{names}: warm in {}", quiet::text(longest)),
                _ => format!("{names}: warm"),
            };
            self.note(kind, Some(object), message);
        }
    }

    /// Tells what became of the health of backends, and of panics.
    pub(super) fn tell_health(&self, before: &State, touched: &Touched) {
        let mut told: Vec<(EventKind, Vec<OfService<'_>>)> = Vec::new();
        for service in touched.services.iter().filter_map(|id| self.state.service_by_id(*id)) {
            let Some(former) = before.service_by_id(service.id) else { continue };
            for (kind, backends) in health_changes(before, former, &self.state, service) {
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
                self.events.record_by(self.by.clone(), kind, Some(object(service, &names)), message);
            }
        }
    }

    fn tell_of_many(&self, kind: EventKind, services: &[OfService<'_>]) {
        let backends: usize = services.iter().map(|(_, backends)| backends.len()).sum();
        let names: Vec<&Name> = services.iter().map(|(service, _)| &service.name).collect();
        let first = services.iter().find_map(|(_, backends)| why(kind, backends.first()?));
        let first = first.map(|why| format!("; the first: {why}")).unwrap_or_default();
        let counted = match backends {
            0 => String::new(),
            backends => format!("{backends} backends of "),
        };
        let message = format!("{counted}{} services ({}){first}", services.len(), list(&names));
        self.events.record_by(self.by.clone(), kind, None, message);
    }
}

/// What differs in the health of a service and its backends, by the kind of event.
fn health_changes<'a>(
    before: &State,
    former: &Service,
    after: &State,
    service: &'a Service,
) -> Vec<(EventKind, Vec<&'a Backend>)> {
    let mut of_kinds: Vec<(EventKind, Vec<&Backend>)> = Vec::new();
    let is_same = former.backends.iter().map(|b| b.id).eq(service.backends.iter().map(|b| b.id));
    for (was, is) in former.backends.iter().zip(&service.backends).filter(|_| is_same) {
        for kind in kinds(was, is) {
            match of_kinds.iter_mut().find(|(held, _)| *held == kind) {
                Some((_, backends)) => backends.push(is),
                None => of_kinds.push((kind, vec![is])),
            }
        }
    }
    match (before.panics(former), after.panics(service)) {
        (false, true) => of_kinds.push((EventKind::PanicStarted, Vec::new())),
        (true, false) => of_kinds.push((EventKind::PanicEnded, Vec::new())),
        (true, true) | (false, false) => {}
    }
    of_kinds
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
        // A restore that asks for a probe is no loss.
        (true, false) if is_asked(is) => {}
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

/// Whether a restore waits for a probe of it.
fn is_asked(backend: &Backend) -> bool {
    backend.health.as_ref().is_some_and(|health| health.probe.as_ref().is_some_and(Unready::is_unanswered))
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

/// What a merge patch sets. Of a field that has fields of its own, which may be secrets, the name only.
fn patched(patch: &Value) -> String {
    let fields = patch.as_object().into_iter().flatten();
    let fields = fields.map(|(name, value)| match value {
        Value::Object(_) | Value::Array(_) => name.clone(),
        value => format!("{name}: {value}"),
    });
    format!("patched with {}", fields.collect::<Vec<_>>().join(", "))
}

/// `shop/n1` when it is about one backend, else `service/shop`.
fn object(service: &Service, backends: &[&Name]) -> String {
    match backends {
        [backend] => format!("{}/{backend}", service.name),
        _ => format!("service/{}", service.name),
    }
}

/// The first few, for a message.
fn list(names: &[&Name]) -> String {
    let shown: Vec<_> = names.iter().take(NAMED).map(|name| name.as_str()).collect();
    match names.len().saturating_sub(NAMED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
