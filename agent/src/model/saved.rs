//! The form in which services and nodes are kept in a store, and the way back to a [`State`].

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Backend, BackendId, Health, HealthPolicy, Limits, Node, NodeId, Origin, Refusal, Service, ServiceId, State,
    Touched, Zero,
    document::{NodeDocument, ServiceDocument},
};

/// A service as it is kept: its document, and what a document does not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedService {
    pub id: ServiceId,
    pub generation: u64,
    pub origin: Origin,
    /// The generation that its file's document made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<u64>,
    /// Ids of the document's backends, in its order.
    pub backends: Vec<BackendId>,
    /// Zeros by the index of their backend.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zeros: BTreeMap<usize, Zero>,
    /// What is known of backends' fitness, by the same.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub health: BTreeMap<usize, Health>,
    pub document: ServiceDocument,
}

/// A node as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SavedNode {
    pub id: NodeId,
    pub generation: u64,
    pub declared: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero: Option<Zero>,
    pub document: NodeDocument,
}

/// What could be restored, and what could not.
#[derive(Debug)]
pub struct Restored<E> {
    pub state: State,
    /// That of reading, or a refusal: what was kept contradicts itself or does not fit the limits.
    pub damaged: Vec<E>,
}

impl State {
    /// What is to be kept of `service`, which is one of this state.
    pub fn saved(&self, service: &Service) -> SavedService {
        let zeros =
            service.backends.iter().enumerate().filter_map(|(index, b)| Some((index, (**b.zero.as_ref()?).clone())));
        let backends = service.backends.iter().enumerate();
        let health = backends.filter_map(|(index, b)| Some((index, (**b.health.as_ref()?).clone())));
        SavedService {
            id: service.id,
            generation: service.generation,
            origin: service.origin.clone(),
            applied: Some(service.applied).filter(|applied| *applied != 0),
            backends: service.backends.iter().map(|backend| backend.id).collect(),
            zeros: zeros.collect(),
            health: health.collect(),
            document: self.document(service),
        }
    }

    /// The state that these nodes and services were kept from. Other ids are free; see [`State::reserve`]. A record that
    /// cannot be used is left out. When it is a node's, the nodes that services name and that are not there are zeroed at
    /// `now`: it may have held a zero.
    pub fn restored<E: From<Refusal>>(
        limits: Limits,
        revision: u64,
        nodes: impl IntoIterator<Item = Result<SavedNode, E>>,
        services: impl IntoIterator<Item = Result<SavedService, E>>,
        now: Timestamp,
    ) -> Restored<E> {
        let mut state = Self::new(limits);
        let mut damaged = Vec::new();
        for saved in nodes {
            let restored = saved.and_then(|saved| {
                let place = format!("saved node/{}", saved.document.metadata.name);
                state.restore_node(saved).map_err(|refusal| refusal.inside(&place).into())
            });
            damaged.extend(restored.err());
        }
        let lost_at = (!damaged.is_empty()).then_some(now);
        for saved in services {
            let restored = saved.and_then(|saved| {
                let place = format!("saved service/{}", saved.document.metadata.name);
                state.restore_service(saved, lost_at).map_err(|refusal| refusal.inside(&place).into())
            });
            damaged.extend(restored.err());
        }
        for service in state.services().cloned().collect::<Vec<_>>() {
            let place = format!("saved service/{}", service.name);
            if let Err(refusal) = state.check_loops(&service, None, None) {
                damaged.push(refusal.inside(&place).into());
                let left_out = state.install(Some(&*service), None, &mut Touched::default());
                damaged.extend(left_out.err().map(E::from));
            }
        }
        state.revision = revision;
        Restored { state, damaged }
    }

    fn restore_node(&mut self, saved: SavedNode) -> Result<(), Refusal> {
        let SavedNode { id, generation, declared, zero, document } = saved;
        document.check()?;
        if id.0 == 0 || id.0 >= self.limits.nodes {
            return Err(too_large("node", id.0, self.limits.nodes));
        }
        let (name, labels) = (document.metadata.name, document.metadata.labels);
        if self.nodes.get(id.0).is_some() || self.node(name.as_str()).is_some() {
            return Err(Refusal::malformed(format!("its id {} or its name is there twice", id.0)));
        }
        self.node_ids.reserve(id.0);
        let zero = zero.map(Into::into);
        self.install_node(Node { id, name, labels, declared, generation, zero }, &mut Touched::default());
        self.settle();
        Ok(())
    }

    /// `lost_at`: nodes were lost, as is found then.
    fn restore_service(&mut self, saved: SavedService, lost_at: Option<Timestamp>) -> Result<(), Refusal> {
        let SavedService { id, generation, origin, applied, backends, mut zeros, mut health, document } = saved;
        document.check()?;
        if id.0 >= self.limits.services {
            return Err(too_large("service", id.0, self.limits.services));
        }
        let name = &document.metadata.name;
        if self.services.get(id.0).is_some() || self.service(name.as_str()).is_some() {
            return Err(Refusal::malformed(format!("its id {} or its name is there twice", id.0)));
        }
        if backends.len() != document.spec.backends.len() {
            return Err(Refusal::malformed("it has not as many ids as backends".to_owned()));
        }
        self.service_ids.reserve(id.0);
        let mut known = Vec::with_capacity(backends.len());
        let mut seen = BTreeSet::new();
        for (index, (id, backend)) in backends.iter().zip(&document.spec.backends).enumerate() {
            if id.0 >= self.limits.backends {
                return Err(too_large("backend", id.0, self.limits.backends));
            }
            if self.owners.get(id.0).is_some() || !seen.insert(*id) {
                return Err(Refusal::malformed(format!("backend id {} is there twice", id.0)));
            }
            self.backend_ids.reserve(id.0);
            known.push(Backend {
                id: *id,
                name: backend.name.clone(),
                address: backend.address,
                node: NodeId(0),
                group: 0,
                weight: backend.weight,
                zero: zeros.remove(&index).map(Into::into),
                own: None,
                health: health.remove(&index).map(Into::into),
            });
        }
        // As if it had been there: what keeps its name and address keeps its id and zero.
        let before = Service {
            id,
            name: name.clone(),
            labels: BTreeMap::new(),
            generation,
            // A store of the former format does not say.
            applied: applied.unwrap_or(if origin == Origin::Api { 0 } else { generation }),
            origin: origin.clone(),
            frontends: Vec::new(),
            balance: document.spec.balance,
            on_no_backend: document.spec.on_no_backend,
            min_ready_percent: 0,
            protocol: Default::default(),
            idle_close: None,
            close_as: Default::default(),
            flow_timeout: None,
            health_policy: HealthPolicy::default(),
            groups: Vec::new(),
            groups_given: false,
            backends: known,
        };
        let mut touched = Touched::default();
        let service = self.resolve(&document, Some(&before), origin, &mut touched)?;
        match lost_at {
            Some(lost_at) => self.zero_lost(&touched.nodes.clone(), lost_at, &mut touched),
            None if touched.nodes.is_empty() => {}
            None => return Err(Refusal::malformed("one of its nodes was not kept".to_owned())),
        }
        self.install(None, Some(service.into()), &mut touched)
    }

    /// Zeroes nodes of which nothing is known but their names.
    fn zero_lost(&mut self, nodes: &[NodeId], since: Timestamp, touched: &mut Touched) {
        for node in nodes {
            let Some(node) = self.node_by_id(*node).cloned() else { continue };
            let (owner, reason) =
                ("sluice".to_owned(), "its saved record was lost, and may have held a zero".to_owned());
            let zero = Some(Zero { owner, reason, since, expires: None, drain: None }.into());
            self.install_node(Node { zero, ..(*node).clone() }, touched);
            self.settle();
        }
    }
}

impl Node {
    /// What is to be kept of this node.
    pub fn saved(&self) -> SavedNode {
        SavedNode {
            id: self.id,
            generation: self.generation,
            declared: self.declared,
            zero: self.zero.as_deref().cloned(),
            document: self.document(),
        }
    }
}

fn too_large(what: &str, id: u32, limit: u32) -> Refusal {
    Refusal::malformed(format!(
        "its {what} id {id} does not fit this agent's limit of {limit}: it was kept with a larger one"
    ))
}
