//! What must hold inside one document. Rules between documents are in `install`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use super::{
    Outlier, Readiness, Refusal, Span, Warmup,
    address::{self, canonical},
    document::{
        MAX_BACKENDS, MAX_FRONTENDS, MAX_GROUPS, MAX_LABEL, MAX_LABELS, MAX_WEIGHT, Metadata, NodeDocument,
        ServiceDocument, ServiceSpec,
    },
    service::{Frontend, Protocol},
};

/// In targets, `node/NAME` is a node: a service of that name could not be told apart.
const RESERVED_SERVICE: &str = "node";

impl ServiceDocument {
    /// # Errors
    /// A refusal that names the field at fault.
    pub fn check(&self) -> Result<(), Refusal> {
        metadata(&self.metadata)?;
        if self.metadata.name == RESERVED_SERVICE {
            let message = "\"node\" cannot name a service: `node/NAME` stands for a node. Choose another";
            return Err(Refusal::invalid("metadata.name", message));
        }
        let spec = &self.spec;
        if spec.min_ready_percent > 100 {
            return Err(Refusal::invalid("spec.minReadyPercent", "a percentage is at most 100"));
        }
        frontends(&spec.frontends)?;
        flow_timeout(spec)?;
        watching(spec)?;
        groups(spec)?;
        backends(spec)
    }
}

impl NodeDocument {
    /// # Errors
    /// A refusal that names the field at fault.
    pub fn check(&self) -> Result<(), Refusal> {
        metadata(&self.metadata)
    }
}

fn metadata(metadata: &Metadata) -> Result<(), Refusal> {
    let labels = &metadata.labels;
    if labels.len() > MAX_LABELS {
        let message = format!("{} labels; at most {MAX_LABELS} are kept", labels.len());
        return Err(Refusal::invalid("metadata.labels", message));
    }
    for (key, value) in labels {
        let field = || format!("metadata.labels.{}", key.chars().take(MAX_LABEL).collect::<String>());
        if key.is_empty() {
            return Err(Refusal::invalid("metadata.labels", "a label's key must not be empty"));
        }
        if key.len() > MAX_LABEL || value.len() > MAX_LABEL {
            let message = format!("a label's key and value have at most {MAX_LABEL} bytes each");
            return Err(Refusal::invalid(field(), message));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(Refusal::invalid(field(), "a label has no control characters"));
        }
    }
    Ok(())
}

fn frontends(frontends: &[Frontend]) -> Result<(), Refusal> {
    if frontends.is_empty() {
        let message = "a service needs at least one frontend: the address that applications connect to";
        return Err(Refusal::invalid("spec.frontends", message));
    }
    if frontends.len() > MAX_FRONTENDS {
        let message = format!("{} frontends; a service has at most {MAX_FRONTENDS}", frontends.len());
        return Err(Refusal::invalid("spec.frontends", message));
    }
    let mut seen = BTreeSet::new();
    for (index, frontend) in frontends.iter().enumerate() {
        let refuse = |message: String| Err(Refusal::invalid(format!("spec.frontends[{index}]"), message));
        if let Err(error) = address::check(frontend.address) {
            return refuse(error.to_string());
        }
        if !seen.insert((canonical(frontend.address), frontend.protocol)) {
            return refuse(format!("{frontend} stands here twice"));
        }
    }
    Ok(())
}

fn flow_timeout(spec: &ServiceSpec) -> Result<(), Refusal> {
    const FIELD: &str = "spec.flowTimeout";
    let Some(timeout) = spec.flow_timeout else { return Ok(()) };
    if !spec.frontends.iter().any(|frontend| frontend.protocol == Protocol::Udp) {
        return Err(Refusal::invalid(FIELD, "is about datagrams, and the service has no UDP frontend"));
    }
    timeout.within(FIELD, Span::seconds(1), Span::seconds(24 * 3600))
}

fn watching(spec: &ServiceSpec) -> Result<(), Refusal> {
    let inside = |field: &'static str| move |refusal: Refusal| refusal.inside(&format!("spec.{field}"));
    spec.warmup.iter().try_for_each(Warmup::check).map_err(inside("warmup"))?;
    spec.readiness.iter().try_for_each(Readiness::check).map_err(inside("readiness"))?;
    let is_tcp = spec.frontends.iter().any(|frontend| frontend.protocol == Protocol::Tcp);
    for (field, is_set) in [("spec.outlier", spec.outlier.is_some()), ("spec.turnTime", spec.turn_time)] {
        if is_set && !is_tcp {
            let message = "counts TCP connections, and the service has no TCP frontend";
            return Err(Refusal::invalid(field, message));
        }
    }
    spec.outlier.iter().try_for_each(Outlier::check).map_err(inside("outlier"))
}

fn groups(spec: &ServiceSpec) -> Result<(), Refusal> {
    if spec.groups.len() > MAX_GROUPS {
        let message = format!("{} groups; a service has at most {MAX_GROUPS}", spec.groups.len());
        return Err(Refusal::invalid("spec.groups", message));
    }
    let mut seen = BTreeSet::new();
    for (index, group) in spec.groups.iter().enumerate() {
        if !seen.insert(&group.name) {
            let message = format!("{:?} names two groups", group.name);
            return Err(Refusal::invalid(format!("spec.groups[{index}].name"), message));
        }
        weight(group.weight, || format!("spec.groups[{index}].weight"))?;
    }
    Ok(())
}

fn backends(spec: &ServiceSpec) -> Result<(), Refusal> {
    if spec.backends.len() > MAX_BACKENDS {
        let message = format!("{} backends; a service has at most {MAX_BACKENDS}", spec.backends.len());
        return Err(Refusal::invalid("spec.backends", message));
    }
    let groups: BTreeSet<_> = spec.groups.iter().map(|group| &group.name).collect();
    let family = FamilyNeeds::of(&spec.frontends);
    let mut seen = BTreeMap::new();
    for (index, backend) in spec.backends.iter().enumerate() {
        let refuse =
            |field: &str, message: String| Err(Refusal::invalid(format!("spec.backends[{index}].{field}"), message));
        if let Some(first) = seen.insert(&backend.name, index) {
            return refuse("name", format!("{:?} also names spec.backends[{first}]", backend.name));
        }
        if let Err(error) = address::check(backend.address) {
            return refuse("address", error.to_string());
        }
        if let Some(message) = family.refuses(backend.address) {
            return refuse("address", message);
        }
        match &backend.group {
            Some(group) if !groups.contains(group) => {
                return refuse("group", format!("{group:?} is none of spec.groups"));
            }
            None if groups.len() > 1 => {
                return refuse("group", "the service has several groups: name the backend's".to_owned());
            }
            Some(_) | None => {}
        }
        weight(backend.weight, || format!("spec.backends[{index}].weight"))?;
        let inside =
            |field: &'static str| move |refusal: Refusal| refusal.inside(&format!("spec.backends[{index}].{field}"));
        backend.warmup.iter().try_for_each(Warmup::check).map_err(inside("warmup"))?;
        backend.readiness.iter().try_for_each(Readiness::check).map_err(inside("readiness"))?;
    }
    Ok(())
}

fn weight(weight: u32, field: impl FnOnce() -> String) -> Result<(), Refusal> {
    if weight > MAX_WEIGHT {
        return Err(Refusal::invalid(field(), format!("a weight is at most {MAX_WEIGHT}, not {weight}")));
    }
    Ok(())
}

/// The address families that a service's frontends leave to its backends. The kernel can turn an IPv6 TCP connect
/// into IPv4 (as a mapped address), but neither an IPv4 call into IPv6 nor an IPv6 datagram into IPv4.
struct FamilyNeeds<'a> {
    wants_v4: Option<&'a Frontend>,
    wants_v6: Option<&'a Frontend>,
}

impl<'a> FamilyNeeds<'a> {
    fn of(frontends: &'a [Frontend]) -> Self {
        Self {
            wants_v4: frontends.iter().find(|frontend| frontend.address.is_ipv4()),
            wants_v6: frontends.iter().find(|f| f.address.is_ipv6() && f.protocol == Protocol::Udp),
        }
    }

    fn refuses(&self, backend: SocketAddr) -> Option<String> {
        if let Some(frontend) = self.wants_v4.filter(|_| backend.is_ipv6()) {
            return Some(format!("frontend {frontend} is IPv4: its backends must be IPv4, not {backend}"));
        }
        let frontend = self.wants_v6.filter(|_| backend.is_ipv4())?;
        Some(format!("frontend {frontend} is IPv6 with UDP: its backends must be IPv6, not {backend}"))
    }
}
