//! Putting one service or node in place of another: the rules between documents, and every index of [`State`].

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use super::{
    Backend, BackendId, Change, Frontend, Node, NodeId, Refusal, Service, ServiceId, State, Touched,
    capacity::shares,
    resolve::canonical_frontend,
    service::Protocol,
    state::{FrontendKey, Holder},
};

impl State {
    /// Puts `new` where `old` was; they have the same id. Nodes that `new` names exist already.
    pub(super) fn install(
        &mut self,
        old: Option<&Service>,
        new: Option<Arc<Service>>,
        touched: &mut Touched,
    ) -> Result<(), Refusal> {
        let Some(id) = new.as_deref().or(old).map(|service| service.id) else { return Ok(()) };
        let difference = Difference::between(old, new.as_deref());
        self.index_addresses(&difference, old, new.as_deref());
        self.index_frontends(id, old, new.as_deref())?;
        self.index_owners(id, &difference, touched);
        self.index_expiries(old, new.as_deref());
        if let (Some(old), None) = (old, &new) {
            self.services_by_name.remove(&old.name);
            touched.removed_services.push((id, old.name.clone()));
        }
        if let Some(new) = &new {
            self.services_by_name.insert(new.name.clone(), id);
            touched.services.push(id);
        }
        self.set_capacity(id, new.as_deref().map(|new| self.measure(new)));
        let left = self.index_shares(id, old, new.as_deref());
        self.services.set(id.0, new);
        left.into_iter().for_each(|node| self.forget_unused_node(node, touched));
        Ok(())
    }

    /// Puts `new` in the place of the node with its id.
    pub(super) fn install_node(&mut self, new: Node, touched: &mut Touched) {
        let id = new.id;
        let held = |node: &Node| node.zero.as_ref().and_then(|zero| zero.expires);
        let old = self.nodes.get(id.0).cloned();
        if let Some(at) = old.as_deref().and_then(held) {
            self.expiries.remove(&(at, Holder::Node(id)));
        }
        if let Some(at) = held(&new) {
            self.expiries.insert((at, Holder::Node(id)));
        }
        let was_zero = old.as_ref().is_some_and(|node| node.zero.is_some());
        if was_zero != new.zero.is_some() {
            self.settle();
            self.unsettled = Some(id);
        }
        if old.is_none() {
            self.nodes_by_name.insert(new.name.clone(), id);
        }
        self.nodes.set(id.0, Some(Arc::new(new)));
        if !touched.nodes.contains(&id) {
            touched.nodes.push(id);
        }
    }

    /// A node lives while a document declares it, a backend names it or a zero holds it.
    pub(super) fn forget_unused_node(&mut self, id: NodeId, touched: &mut Touched) {
        let Some(node) = self.nodes.get(id.0) else { return };
        if node.declared || node.zero.is_some() || self.node_shares(id).next().is_some() {
            return;
        }
        let name = node.name.clone();
        self.nodes_by_name.remove(&name);
        self.nodes.set(id.0, None);
        touched.nodes.retain(|touched| *touched != id);
        touched.removed_nodes.push((id, name));
    }

    fn index_addresses(&mut self, difference: &Difference<'_>, old: Option<&Service>, new: Option<&Service>) {
        for (backend, protocol) in pairs(&difference.gone, old) {
            let key = FrontendKey::new(backend.address, protocol).hash();
            match self.addresses.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                Some(_) | None => drop(self.addresses.remove(&key)),
            }
        }
        for (backend, protocol) in pairs(&difference.come, new) {
            *self.addresses.entry(FrontendKey::new(backend.address, protocol).hash()).or_insert(0) += 1;
        }
    }

    /// Takes frontends out of the index that `change` gives up, so that others of the same request may have them, whatever
    /// their order.
    pub(super) fn give_up_frontends(&mut self, change: &Change) {
        let (name, kept) = match change {
            Change::PutService { document, .. } => (&document.metadata.name, &*document.spec.frontends),
            Change::DeleteService { service, .. } => (service, &[][..]),
            Change::PatchService { .. }
            | Change::PatchBackend { .. }
            | Change::PatchGroup { .. }
            | Change::PutNode { .. }
            | Change::DeleteNode { .. }
            | Change::UndeclareNode { .. }
            | Change::Zero { .. }
            | Change::Restore { .. }
            | Change::EndDrains { .. }
            | Change::UpdateHealth { .. } => return,
        };
        let Some(service) = self.service(name.as_str()).cloned() else { return };
        let kept: HashSet<_> = kept.iter().map(canonical_frontend).collect();
        for frontend in service.frontends.iter().filter(|frontend| !kept.contains(frontend)) {
            self.frontends.remove(&FrontendKey::from(frontend));
        }
    }

    /// That no connection would loop: no frontend that is new since `old` is the address of a backend, and no backend, or
    /// not the one at `only`, has the address of a frontend.
    ///
    /// # Errors
    /// A refusal that names the field of the service's document.
    pub(super) fn check_loops(
        &self,
        service: &Service,
        old: Option<&Service>,
        only: Option<usize>,
    ) -> Result<(), Refusal> {
        let is_new = |frontend: &Frontend| old.is_none_or(|old| !old.frontends.contains(frontend));
        for (index, frontend) in service.frontends.iter().enumerate().filter(|(_, frontend)| is_new(frontend)) {
            if let Some(whose) = self.backend_at(FrontendKey::from(frontend), service) {
                let message = format!("{frontend} is the address of backend {whose}: connections would loop");
                return Err(Refusal::invalid(format!("spec.frontends[{index}]"), message));
            }
        }
        let protocols: Vec<_> = protocols(service).collect();
        for (index, backend) in
            service.backends.iter().enumerate().filter(|(index, _)| only.is_none_or(|o| o == *index))
        {
            for protocol in &protocols {
                if let Some(other) = self.frontends.get(&FrontendKey::new(backend.address, *protocol)) {
                    let whose = self.service_by_id(*other).map_or(&service.name, |other| &other.name);
                    let message =
                        format!("{}/{protocol} is a frontend of {whose}: connections would loop", backend.address);
                    return Err(Refusal::invalid(format!("spec.backends[{index}].address"), message));
                }
            }
        }
        Ok(())
    }

    fn index_frontends(&mut self, id: ServiceId, old: Option<&Service>, new: Option<&Service>) -> Result<(), Refusal> {
        let kept = |frontends: Option<&Service>, frontend| frontends.is_some_and(|s| s.frontends.contains(frontend));
        for frontend in old.iter().flat_map(|old| &old.frontends).filter(|frontend| !kept(new, frontend)) {
            let key = FrontendKey::from(frontend);
            // Another may have it already: see `give_up_frontends`.
            if self.frontends.get(&key) == Some(&id) {
                self.frontends.remove(&key);
            }
        }
        let Some(new) = new else { return Ok(()) };
        for (index, frontend) in new.frontends.iter().enumerate().filter(|(_, frontend)| !kept(old, frontend)) {
            let held = self.frontends.insert(FrontendKey::from(frontend), id).filter(|held| *held != id);
            if let Some(other) = held.and_then(|other| self.service_by_id(other)) {
                let message = format!("{frontend} is a frontend of {} already: remove it there first", other.name);
                return Err(Refusal::invalid(format!("spec.frontends[{index}]"), message));
            }
            if self.is_api(frontend) {
                let message =
                    format!("{frontend} is where this agent serves its API: its callers would be steered away");
                return Err(Refusal::invalid(format!("spec.frontends[{index}]"), message));
            }
        }
        if self.frontends.len() > self.limits.frontends as usize {
            let message = format!("this agent holds at most {} frontends", self.limits.frontends);
            return Err(Refusal::invalid("spec.frontends", message));
        }
        Ok(())
    }

    fn index_owners(&mut self, id: ServiceId, difference: &Difference<'_>, touched: &mut Touched) {
        let come: HashSet<_> = difference.come.iter().map(|backend| backend.id).collect();
        for backend in difference.gone.iter().filter(|backend| !come.contains(&backend.id)) {
            self.owners.set(backend.id.0, None);
            touched.removed_backends.push(backend.id);
        }
        for backend in &come {
            self.owners.set(backend.0, Some(id));
        }
    }

    fn index_expiries(&mut self, old: Option<&Service>, new: Option<&Service>) {
        for held in old.into_iter().flat_map(expiries) {
            self.expiries.remove(&held);
        }
        for held in new.into_iter().flat_map(expiries) {
            self.expiries.insert(held);
        }
    }

    /// Returns the nodes on which the service was and no longer is.
    fn index_shares(&mut self, id: ServiceId, old: Option<&Service>, new: Option<&Service>) -> Vec<NodeId> {
        let before = old.map(shares).unwrap_or_default();
        let after = new.map(shares).unwrap_or_default();
        for (node, weight) in &after {
            if before.get(node) != Some(weight) {
                self.shares.insert((*node, id), *weight);
            }
        }
        let left: Vec<_> = before.into_keys().filter(|node| !after.contains_key(node)).collect();
        for node in &left {
            self.shares.remove(&(*node, id));
        }
        left
    }

    /// `SERVICE/BACKEND` of one backend with this address. Looks through all only when the hash is there.
    fn backend_at(&self, endpoint: FrontendKey, new: &Service) -> Option<String> {
        self.addresses.get(&endpoint.hash())?;
        let others = self.services.iter().map(|(_, service)| &**service).filter(|service| service.id != new.id);
        let mut all = std::iter::once(new).chain(others).flat_map(|service| {
            let backends = service.backends.iter().flat_map(|b| protocols(service).map(move |p| (b, p)));
            backends.map(move |(backend, protocol)| (service, backend, protocol))
        });
        let (service, backend, _) =
            all.find(|(_, backend, protocol)| FrontendKey::new(backend.address, *protocol) == endpoint)?;
        Some(format!("{}/{}", service.name, backend.name))
    }
}

fn expiries(service: &Service) -> impl Iterator<Item = (jiff::Timestamp, Holder)> {
    let zeros = service.backends.iter().filter_map(|backend| Some((backend, backend.zero.as_ref()?)));
    zeros.filter_map(|(backend, zero)| Some((zero.expires?, Holder::Backend(backend.id))))
}

fn protocols(service: &Service) -> impl Iterator<Item = Protocol> + use<> {
    let protocols: BTreeSet<_> = service.frontends.iter().map(|frontend| frontend.protocol).collect();
    protocols.into_iter()
}

fn pairs<'a>(backends: &[&'a Backend], of: Option<&Service>) -> impl Iterator<Item = (&'a Backend, Protocol)> {
    let protocols: Vec<_> = of.into_iter().flat_map(protocols).collect();
    backends.iter().flat_map(move |backend| protocols.clone().into_iter().map(move |protocol| (*backend, protocol)))
}

/// Backends whose address or protocols change. An id stands for an address, so ids tell.
struct Difference<'a> {
    gone: Vec<&'a Backend>,
    come: Vec<&'a Backend>,
}

impl<'a> Difference<'a> {
    fn between(old: Option<&'a Service>, new: Option<&'a Service>) -> Self {
        let (Some(before), Some(after)) = (old, new) else {
            let all = |service: Option<&'a Service>| service.iter().flat_map(|s| &s.backends).collect();
            return Self { gone: all(old), come: all(new) };
        };
        if !protocols(before).eq(protocols(after)) {
            return Self { gone: before.backends.iter().collect(), come: after.backends.iter().collect() };
        }
        let ids = |service: &Service| -> HashSet<BackendId> { service.backends.iter().map(|b| b.id).collect() };
        let same = before.backends.iter().map(|b| b.id).eq(after.backends.iter().map(|b| b.id));
        if same {
            return Self { gone: Vec::new(), come: Vec::new() };
        }
        let (old_ids, new_ids) = (ids(before), ids(after));
        Self {
            gone: before.backends.iter().filter(|backend| !new_ids.contains(&backend.id)).collect(),
            come: after.backends.iter().filter(|backend| !old_ids.contains(&backend.id)).collect(),
        }
    }
}
