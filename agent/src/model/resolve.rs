//! From documents to services and nodes with ids, and back.

use std::{collections::HashMap, sync::Arc};

use super::{
    Backend, BackendId, Group, Health, HealthPolicy, Name, Node, NodeId, Origin, Own, Readiness, ReadinessKind,
    Refusal, Report, Reported, Service, ServiceId, State, Touched, Unready,
    address::canonical,
    document::{BackendDocument, GroupDocument, Metadata, NodeDocument, ServiceDocument, ServiceSpec},
    service::Frontend,
};

impl State {
    /// The service that `document` (checked) describes. What stays the same keeps its id, and backends that keep their
    /// name keep their zero. Ids are taken and nodes made in `self`, which is not otherwise changed.
    pub(super) fn resolve(
        &mut self,
        document: &ServiceDocument,
        old: Option<&Service>,
        origin: Origin,
        touched: &mut Touched,
    ) -> Result<Service, Refusal> {
        let spec = &document.spec;
        let id = match old {
            Some(old) => old.id,
            None => self.service_ids.take().map(ServiceId).ok_or_else(|| {
                Refusal::malformed(format!("this agent holds at most {} services", self.limits.services))
            })?,
        };
        let groups_given = !spec.groups.is_empty();
        let groups: Vec<_> = if groups_given {
            spec.groups.iter().map(|group| Group { name: group.name.clone(), weight: group.weight }).collect()
        } else {
            vec![Group { name: Name::default_group(), weight: 1 }]
        };
        let health_policy = health_policy(spec);
        let known: HashMap<&str, &Backend> =
            old.iter().flat_map(|old| &old.backends).map(|backend| (backend.name.as_str(), backend)).collect();
        let mut backends = Vec::with_capacity(spec.backends.len());
        for (index, document) in spec.backends.iter().enumerate() {
            let known = known.get(document.name.as_str()).copied();
            let backend = self.resolve_backend(document, known, &groups, &health_policy, touched);
            backends.push(backend.map_err(|refusal| refusal.inside(&format!("spec.backends[{index}]")))?);
        }
        Ok(Service {
            id,
            name: document.metadata.name.clone(),
            labels: document.metadata.labels.clone(),
            generation: old.map_or(1, |old| old.generation),
            origin,
            applied: old.map_or(0, |old| old.applied),
            frontends: spec.frontends.iter().map(canonical_frontend).collect(),
            balance: spec.balance,
            on_no_backend: spec.on_no_backend,
            min_ready_percent: spec.min_ready_percent,
            protocol: spec.protocol,
            idle_close: spec.idle_close,
            close_as: spec.close_as,
            flow_timeout: spec.flow_timeout,
            health_policy,
            groups,
            groups_given,
            backends,
        })
    }

    /// Fields of a refusal are those of the backend.
    pub(super) fn resolve_backend(
        &mut self,
        document: &BackendDocument,
        known: Option<&Backend>,
        groups: &[Group],
        health_policy: &HealthPolicy,
        touched: &mut Touched,
    ) -> Result<Backend, Refusal> {
        let address = canonical(document.address);
        let id = match known.filter(|known| known.address == address) {
            Some(known) => known.id,
            None => self.backend_ids.take().map(BackendId).ok_or_else(|| {
                let message = format!("this agent holds at most {} backends", self.limits.backends);
                Refusal::invalid("name", message)
            })?,
        };
        let node = match &document.node {
            Some(name) => self.node_id(name, touched)?,
            None => NodeId(0),
        };
        let group = document.group.as_ref().and_then(|name| groups.iter().position(|group| group.name == *name));
        let own = own(document);
        let readiness = own.as_ref().and_then(|own| own.readiness.as_ref()).or(health_policy.readiness.as_ref());
        let before = known.filter(|known| known.id == id).map(|known| known.health.as_deref());
        let health = health(before, readiness.map(AsRef::as_ref), health_policy);
        Ok(Backend {
            id,
            name: document.name.clone(),
            address,
            node,
            group: group.and_then(|index| u32::try_from(index).ok()).unwrap_or(0),
            weight: document.weight,
            zero: known.and_then(|known| known.zero.clone()),
            own,
            health,
        })
    }

    /// The id of the node with this name, which is made when it is new.
    pub(super) fn node_id(&mut self, name: &Name, touched: &mut Touched) -> Result<NodeId, Refusal> {
        if let Some(id) = self.nodes_by_name.get(name) {
            return Ok(*id);
        }
        let id = self.node_ids.take().map(NodeId).ok_or_else(|| {
            let most = self.limits.nodes.saturating_sub(1);
            Refusal::invalid("node", format!("this agent holds at most {most} nodes"))
        })?;
        let (name, labels) = (name.clone(), Default::default());
        self.install_node(Node { id, name, labels, declared: false, generation: 1, zero: None }, touched);
        Ok(id)
    }

    /// The document of `service`, with defaults filled in.
    pub fn document(&self, service: &Service) -> ServiceDocument {
        let groups = service.groups.iter().filter(|_| service.groups_given);
        ServiceDocument::new(
            Metadata { name: service.name.clone(), labels: service.labels.clone() },
            ServiceSpec {
                frontends: service.frontends.clone(),
                balance: service.balance,
                on_no_backend: service.on_no_backend,
                min_ready_percent: service.min_ready_percent,
                protocol: service.protocol,
                idle_close: service.idle_close,
                close_as: service.close_as,
                flow_timeout: service.flow_timeout,
                warmup: service.health_policy.warmup.as_deref().cloned(),
                readiness: service.health_policy.readiness.as_deref().cloned(),
                outlier: service.health_policy.outlier.as_deref().cloned(),
                panic_threshold: service.health_policy.panic_threshold,
                turn_time: service.health_policy.turn_time,
                groups: groups.map(|group| GroupDocument { name: group.name.clone(), weight: group.weight }).collect(),
                backends: service.backends.iter().map(|backend| self.backend_document(service, backend)).collect(),
            },
        )
    }

    /// One backend of [`State::document`].
    pub fn backend_document(&self, service: &Service, backend: &Backend) -> BackendDocument {
        let group = service.groups.get(backend.group as usize).filter(|_| service.groups_given);
        BackendDocument {
            name: backend.name.clone(),
            address: backend.address,
            node: self.node_by_id(backend.node).map(|node| node.name.clone()),
            group: group.map(|group| group.name.clone()),
            weight: backend.weight,
            warmup: backend.own.as_ref().and_then(|own| own.warmup.as_deref().cloned()),
            readiness: backend.own.as_ref().and_then(|own| own.readiness.as_deref().cloned()),
        }
    }
}

impl Node {
    /// The document of this node.
    pub fn document(&self) -> NodeDocument {
        NodeDocument::new(Metadata { name: self.name.clone(), labels: self.labels.clone() })
    }
}

fn health_policy(spec: &ServiceSpec) -> HealthPolicy {
    HealthPolicy {
        warmup: spec.warmup.clone().map(Arc::new),
        readiness: spec.readiness.clone().map(Arc::new),
        outlier: spec.outlier.clone().map(Arc::new),
        panic_threshold: spec.panic_threshold,
        turn_time: spec.turn_time,
    }
}

fn own(document: &BackendDocument) -> Option<Arc<Own>> {
    let (warmup, readiness) = (document.warmup.clone().map(Arc::new), document.readiness.clone().map(Arc::new));
    (warmup.is_some() || readiness.is_some()).then(|| Arc::new(Own { warmup, readiness }))
}

/// What is known of a backend after a change of its document. `before` is absent for a new one, which is not ready until
/// somebody says so; one that serves goes on until a probe says otherwise. A reason whose author is gone goes with it.
fn health(
    before: Option<Option<&Health>>,
    readiness: Option<&Readiness>,
    health_policy: &HealthPolicy,
) -> Option<Arc<Health>> {
    let kind = readiness.map_or(ReadinessKind::None, |readiness| readiness.kind);
    let mut health = match before {
        Some(health) => health.cloned().unwrap_or_default(),
        None => Health::default(),
    };
    let is_probed = readiness.is_some_and(Readiness::is_probed);
    let was_starting = health.probe.as_ref().is_some_and(|probe| probe.starting && probe.asked.is_none());
    match (is_probed, before) {
        (true, None) => {
            health.probe = Some(Unready::unprobed());
        }
        (true, Some(_)) => {}
        (false, _) => health.probe = None,
    }
    match (kind, before) {
        (ReadinessKind::Report, None) => health.report = Some(Report::awaited()),
        // It has never been ready, and only who would say so is another.
        (ReadinessKind::Report, Some(_)) if was_starting && health.report.is_none() => {
            health.report = Some(Report::awaited());
        }
        (ReadinessKind::Report, Some(_)) => {}
        _ if health.report.as_ref().is_some_and(|report| report.state == Reported::Awaited) => health.report = None,
        _ => {}
    }
    if health_policy.outlier.is_none() {
        health.ejection = None;
    }
    (!health.is_empty()).then(|| Arc::new(health))
}

/// With an IPv4 address where it is one in the form of IPv6.
pub(super) fn canonical_frontend(frontend: &Frontend) -> Frontend {
    Frontend { address: canonical(frontend.address), protocol: frontend.protocol }
}
