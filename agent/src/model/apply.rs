//! [`State::apply`]: every change, from one state to the next.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{
    Applied, Backend, Change, HealthReport, Name, Node, Origin, Outcome, Refusal, Service, State, Target, Touched,
    Zero,
    capacity::{Shortage, shortages},
    document::{BackendDocument, Document, GroupDocument, Metadata, NodeDocument, ServiceDocument},
    merge::merge,
    parse,
    zero::AskedZero,
};

impl State {
    /// The state after `change`. `now` is used for nothing but time stamps.
    ///
    /// # Errors
    /// A [`Refusal`] that names the field at fault.
    pub fn apply(&self, change: &Change, now: Timestamp) -> Result<Applied, Refusal> {
        self.apply_together(&[change], now).map_err(|mut refused| refused.remove(0).1)
    }

    /// Makes one change, which [`State::apply_together`] judges when all are made.
    pub(super) fn make(&mut self, change: &Change, now: Timestamp, touched: &mut Touched) -> Result<Outcome, Refusal> {
        match change {
            Change::PutService { document, origin, if_match } => {
                self.put_service(document, Some(origin), *if_match, touched)
            }
            Change::PatchService { service, patch, if_match } => self.patch_service(service, patch, *if_match, touched),
            Change::DeleteService { service, if_match } => self.delete_service(service, *if_match, touched),
            Change::PatchBackend { service, backend, patch, if_match } => {
                self.patch_backend(service, backend, patch, *if_match, touched)
            }
            Change::PatchGroup { service, group, patch, if_match } => {
                self.patch_group(service, group, patch, *if_match, touched)
            }
            Change::PutNode { document } => self.put_node(document, touched),
            Change::DeleteNode { node } => self.delete_node(node, touched),
            Change::UndeclareNode { node } => self.undeclare_node(node, touched),
            Change::Zero { target, zero, drain, force } => {
                zero.check()?;
                let asked = AskedZero { zero, drain: drain.as_ref(), force: *force, now };
                match target {
                    Target::Node(node) => self.zero_node(node, asked, touched),
                    Target::Backend { service, backend } => self.zero_backend(service, backend, asked, touched),
                }
            }
            Change::Restore { target } => self.restore(target, now, touched),
            Change::EndDrains { ends } => self.end_drains(ends, touched),
            Change::UpdateHealth { updates } => self.update_health(updates, touched),
        }
    }

    /// `origin` is that of the document; without one the service keeps its own.
    fn put_service(
        &mut self,
        document: &ServiceDocument,
        origin: Option<&Origin>,
        if_match: Option<u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let name = &document.metadata.name;
        let old = self.service(name.as_str()).cloned();
        check_match(name, old.as_deref(), if_match)?;
        let whole;
        let document = if document.is_redacted() {
            let held = old.as_deref().map(|old| self.document(old));
            whole = document.clone().with_secrets(held.as_ref())?;
            &whole
        } else {
            document
        };
        document.check()?;
        let asked = origin;
        let origin = match (old.as_deref(), origin) {
            // A file owns what it lists, until it or another file says otherwise.
            (Some(Service { origin: file @ Origin::File(_), .. }), Some(Origin::Api) | None) => file.clone(),
            (Some(old), None) => old.origin.clone(),
            (_, Some(origin)) => origin.clone(),
            (None, None) => Origin::Api,
        };
        let is_files = matches!(asked, Some(Origin::File(_)));
        let new = self.resolve(document, old.as_deref(), origin, touched)?;
        self.replace(old.as_deref(), new, is_files, touched)
    }

    fn patch_service(
        &mut self,
        name: &Name,
        patch: &Value,
        if_match: Option<u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let old = self.service(name.as_str()).ok_or_else(|| no_service(name))?;
        check_match(name, Some(old), if_match)?;
        let mut value = to_value(&self.document(old))?;
        let kind = value["kind"].clone();
        merge(&mut value, object(patch)?);
        let refuse_kind = || Refusal::invalid("kind", "a patch cannot change the kind".to_owned());
        // First of all: as another kind, every field would be wrong.
        if value["kind"] != kind {
            return Err(refuse_kind());
        }
        let document = match parse::document(value)?.document {
            Document::Service(document) if document.metadata.name == *name => document,
            Document::Service(_) => {
                return Err(Refusal::invalid("metadata.name", format!("a patch cannot rename {name}")));
            }
            Document::Node(_) => return Err(refuse_kind()),
        };
        self.put_service(&document, None, None, touched)
    }

    fn patch_backend(
        &mut self,
        name: &Name,
        backend: &Name,
        patch: &Value,
        if_match: Option<u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let old = self.service(name.as_str()).ok_or_else(|| no_service(name))?.clone();
        check_match(name, Some(&old), if_match)?;
        let (index, before) = find_backend(&old, backend)?;
        let held = self.backend_document(&old, before);
        let mut value = to_value(&held)?;
        merge(&mut value, object(patch)?);
        let mut document: BackendDocument = parse::typed(value)?;
        document.take_secrets(Some(&held), "readiness")?;
        if document.name != *backend {
            return Err(Refusal::invalid("name", format!("a patch cannot rename {backend}")));
        }
        // The backend alone is rendered and checked: the service may have thousands.
        let mut shown = self.document(&Service { backends: Vec::new(), ..(*old).clone() });
        shown.spec.backends.push(document);
        let inside = |refusal: Refusal| refusal.relative_to("spec.backends[0]");
        shown.check().map_err(inside)?;
        let Some(document) = shown.spec.backends.first() else { return Ok(Outcome::Unchanged) };
        let mut new = (*old).clone();
        let after = self.resolve_backend(document, Some(before), &old.groups, &old.health_policy, touched)?;
        if let Some(place) = new.backends.get_mut(index) {
            *place = after;
        }
        self.replace(Some(&old), new, false, touched)
    }

    fn patch_group(
        &mut self,
        name: &Name,
        group: &Name,
        patch: &Value,
        if_match: Option<u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let old = self.service(name.as_str()).ok_or_else(|| no_service(name))?.clone();
        check_match(name, Some(&old), if_match)?;
        let mut new = (*old).clone();
        let place = new.groups.iter_mut().find(|held| held.name == *group).filter(|_| old.groups_given);
        let place = place.ok_or_else(|| no_group(name, group))?;
        let mut value = to_value(&GroupDocument { name: group.clone(), weight: place.weight })?;
        merge(&mut value, object(patch)?);
        let document: GroupDocument = parse::typed(value)?;
        if document.name != *group {
            return Err(Refusal::invalid("name", format!("a patch cannot rename {group}")));
        }
        place.weight = document.weight;
        self.replace(Some(&old), new, false, touched)
    }

    /// Installs `new` with the generation that follows from what differs. `is_files`: a file's document asks for it.
    fn replace(
        &mut self,
        old: Option<&Service>,
        mut new: Service,
        is_files: bool,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let outcome = match old {
            None => Outcome::Created,
            Some(old) if *old == new && !(is_files && old.is_edited()) => return Ok(Outcome::Unchanged),
            // Another owner of the same content: saved, but nothing that a reader of the document would see.
            Some(old) if *old == (Service { origin: old.origin.clone(), ..new.clone() }) => Outcome::Unchanged,
            Some(old) => {
                new.generation = old.generation + 1;
                Outcome::Replaced
            }
        };
        if is_files {
            new.applied = new.generation;
        }
        self.install(old, Some(Arc::new(new)), touched)?;
        Ok(outcome)
    }

    fn delete_service(
        &mut self,
        name: &Name,
        if_match: Option<u64>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let old = self.service(name.as_str()).ok_or_else(|| no_service(name))?.clone();
        check_match(name, Some(&old), if_match)?;
        self.install(Some(&old), None, touched)?;
        Ok(Outcome::Deleted)
    }

    fn put_node(&mut self, document: &NodeDocument, touched: &mut Touched) -> Result<Outcome, Refusal> {
        document.check()?;
        let Metadata { name, labels } = &document.metadata;
        let known = self.node(name.as_str()).cloned();
        let outcome = match &known {
            None => Outcome::Created,
            Some(known) if known.declared && known.labels == *labels => return Ok(Outcome::Unchanged),
            Some(_) => Outcome::Replaced,
        };
        let id = self
            .node_id(name, touched)
            .map_err(|refusal| Refusal { field: Some("metadata.name".into()), ..refusal })?;
        let generation = known.as_ref().map_or(1, |known| known.generation + 1);
        let zero = known.and_then(|known| known.zero.clone());
        let (name, labels) = (name.clone(), labels.clone());
        self.install_node(Node { id, name, labels, declared: true, generation, zero }, touched);
        Ok(outcome)
    }

    fn delete_node(&mut self, name: &Name, touched: &mut Touched) -> Result<Outcome, Refusal> {
        let node = self.node(name.as_str()).ok_or_else(|| no_node(name))?.clone();
        let users: Vec<_> = self.node_services(node.id).map(|service| service.name.clone()).collect();
        if !users.is_empty() {
            let message = format!("backends of {} are on node {name}: move them first", list(&users));
            return Err(Refusal::conflict(message, users));
        }
        if node.zero.is_some() {
            let message = format!("node {name} is zeroed, and deleting it would forget that: restore it first");
            return Err(Refusal::conflict(message, Vec::new()));
        }
        self.undeclare_node(name, touched)?;
        Ok(Outcome::Deleted)
    }

    fn undeclare_node(&mut self, name: &Name, touched: &mut Touched) -> Result<Outcome, Refusal> {
        let node = self.node(name.as_str()).ok_or_else(|| no_node(name))?;
        if !node.declared {
            return Ok(Outcome::Unchanged);
        }
        let generation = node.generation + 1;
        let node = Node { labels: Default::default(), declared: false, generation, ..(**node).clone() };
        let id = node.id;
        self.install_node(node, touched);
        self.forget_unused_node(id, touched);
        Ok(if self.node_by_id(id).is_some() { Outcome::Replaced } else { Outcome::Deleted })
    }

    fn zero_node(&mut self, name: &Name, asked: AskedZero<'_>, touched: &mut Touched) -> Result<Outcome, Refusal> {
        let node = self.node(name.as_str()).ok_or_else(|| no_node(name))?.clone();
        let Some(zero) = asked.overlay(node.zero.as_ref())? else { return Ok(Outcome::Unchanged) };
        if !asked.force && node.zero.is_none() {
            let short = self.short_without(node.id).into_iter();
            let short = short.filter_map(|(id, capacity)| Some(capacity.shortage(self.service_by_id(id)?)));
            guard(&asked, &format!("node/{name}"), short.collect())?;
        }
        self.install_node(Node { zero: Some(zero), ..(*node).clone() }, touched);
        Ok(Outcome::Replaced)
    }

    fn zero_backend(
        &mut self,
        name: &Name,
        backend: &Name,
        asked: AskedZero<'_>,
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let old = self.service(name.as_str()).ok_or_else(|| no_service(name))?.clone();
        let (index, found) = find_backend(&old, backend)?;
        let Some(zero) = asked.overlay(found.zero.as_ref())? else { return Ok(Outcome::Unchanged) };
        let new = with_zero(&old, index, Some(zero));
        if !asked.force {
            let (before, after) = (self.measure(&old), self.measure(&new));
            if after.open < before.open && after.open < after.floor {
                guard(&asked, &format!("{name}/{backend}"), vec![after.shortage(&new)])?;
            }
        }
        self.install(Some(&old), Some(Arc::new(new)), touched)?;
        Ok(Outcome::Replaced)
    }

    fn restore(&mut self, target: &Target, now: Timestamp, touched: &mut Touched) -> Result<Outcome, Refusal> {
        match target {
            Target::Node(name) => {
                let node = self.node(name.as_str()).ok_or_else(|| no_node(name))?.clone();
                if node.zero.is_none() {
                    return Ok(Outcome::Unchanged);
                }
                self.install_node(Node { zero: None, ..(*node).clone() }, touched);
                self.forget_unused_node(node.id, touched);
                let asking = |old: &Arc<Service>| Some((old.clone(), old.asking(now, |one| one.node == node.id)?));
                let asked: Vec<_> = self.node_services(node.id).filter_map(asking).collect();
                if !asked.is_empty() {
                    self.settle();
                }
                for (old, new) in asked {
                    self.install(Some(&old), Some(Arc::new(new)), touched)?;
                }
            }
            Target::Backend { service, backend } => {
                let old = self.service(service.as_str()).ok_or_else(|| no_service(service))?.clone();
                let (index, found) = find_backend(&old, backend)?;
                // What is not zeroed is let in before its ejection is over.
                let new = match (&found.zero, found.with_report(&HealthReport::Ejection(None))) {
                    (Some(_), _) => with_zero(&old, index, None),
                    (None, Some(backend)) => with_backend(&old, index, backend),
                    (None, None) => return Ok(Outcome::Unchanged),
                };
                let new = new.asking(now, |one| one.id == found.id).unwrap_or(new);
                self.install(Some(&old), Some(Arc::new(new)), touched)?;
            }
        }
        Ok(Outcome::Replaced)
    }
}

fn with_backend(service: &Service, index: usize, backend: Backend) -> Service {
    let mut service = service.clone();
    if let Some(place) = service.backends.get_mut(index) {
        *place = backend;
    }
    service
}

fn with_zero(service: &Service, index: usize, zero: Option<Arc<Zero>>) -> Service {
    let mut service = service.clone();
    if let Some(backend) = service.backends.get_mut(index) {
        backend.zero = zero;
    }
    service
}

fn guard(asked: &AskedZero<'_>, target: &str, short: Vec<Shortage>) -> Result<(), Refusal> {
    let doing = if asked.drain.is_some() { "draining" } else { "zeroing" };
    shortages(&format!("{doing} {target}"), short)
}

/// The first few names, for a message.
pub(super) fn list(names: &[impl ToString]) -> String {
    const SHOWN: usize = 5;
    let shown: Vec<_> = names.iter().take(SHOWN).map(ToString::to_string).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

fn check_match(name: &Name, found: Option<&Service>, if_match: Option<u64>) -> Result<(), Refusal> {
    let Some(wanted) = if_match else { return Ok(()) };
    match found {
        None if wanted == 0 => Ok(()),
        Some(service) if service.generation == wanted => Ok(()),
        Some(_) if wanted == 0 => Err(Refusal::stale(format!("service {name} exists already"))),
        Some(service) => Err(Refusal::stale(format!(
            "service {name} is at generation {}, not {wanted}: somebody changed it. Read it again",
            service.generation
        ))),
        None => Err(Refusal::stale(format!("service {name} does not exist any more"))),
    }
}

fn find_backend<'a>(service: &'a Service, name: &Name) -> Result<(usize, &'a Backend), Refusal> {
    let mut backends = service.backends.iter().enumerate();
    backends
        .find(|(_, backend)| backend.name == *name)
        .ok_or_else(|| Refusal::not_found(format!("service {} has no backend {name}", service.name)))
}

fn no_service(name: &Name) -> Refusal {
    Refusal::not_found(format!("there is no service {name}"))
}

fn no_group(service: &Name, group: &Name) -> Refusal {
    Refusal::not_found(format!("service {service} has no group {group}"))
}

fn no_node(name: &Name) -> Refusal {
    Refusal::not_found(format!("there is no node {name}: no backend names it and no document declares it"))
}

fn object(patch: &Value) -> Result<&serde_json::Map<String, Value>, Refusal> {
    patch.as_object().ok_or_else(|| Refusal::malformed("a merge patch is an object with the fields to change"))
}

fn to_value(document: &impl serde::Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(document).map_err(|error| Refusal::malformed(error.to_string()))
}
