//! How much each service has open, how much it must keep, and when so few of it are healthy that all serve.

use std::collections::BTreeMap;

use super::{Backend, NodeId, Service, ServiceId, State};

/// What a zero leaves is compared with this. Weights are summed over all groups that get connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Weight of the open and healthy backends.
    pub open: u64,
    /// The least that a zero must leave open; at least 1.
    pub floor: u64,
    /// The most that the zero of any one node can take.
    pub largest: u64,
}

impl Capacity {
    /// Whether less than the service must keep is open without this weight.
    pub fn is_short_without(&self, weight: u64) -> bool {
        weight > 0 && self.open.saturating_sub(weight) < self.floor
    }
}

impl State {
    /// Whether so few of the service's backends are healthy that all of them serve. Backends that take nothing anyway,
    /// or that never began to, are not counted.
    pub fn panics(&self, service: &Service) -> bool {
        panics_with(service, |backend| self.is_open(backend))
    }

    /// What `service` has open and fit, and must keep.
    pub(super) fn measure(&self, service: &Service) -> Capacity {
        let (mut total, mut open) = (0, 0);
        let is_doubtful = is_doubtful(service);
        for backend in &service.backends {
            let weight = weight_in(service, backend);
            total += weight;
            if self.is_open(backend) && backend.is_fit(is_doubtful) {
                open += weight;
            }
        }
        let floor = (total * u64::from(service.min_ready_percent)).div_ceil(100).max(1);
        Capacity { open, floor, largest: shares(service).into_values().max().unwrap_or_default() }
    }

    pub(super) fn set_capacity(&mut self, id: ServiceId, capacity: Option<Capacity>) {
        if capacity.is_some_and(|capacity| capacity.is_short_without(capacity.largest)) {
            self.tight.insert(id);
        } else {
            self.tight.remove(&id);
        }
        self.capacity.set(id.0, capacity);
    }

    /// Services that a zero of this node would leave with less open capacity than they must keep. A zero waits for this:
    /// it looks only at those that some node could leave short, or at those on the node if they are fewer.
    pub(super) fn short_without(&self, node: NodeId) -> Vec<ServiceId> {
        let is_short = |service: &ServiceId, weight: u64| {
            self.capacity.get(service.0).is_some_and(|capacity| capacity.is_short_without(weight))
        };
        if self.node_shares(node).nth(self.tight.len()).is_none() {
            let short = self.node_shares(node).filter(|(service, weight)| is_short(service, *weight));
            return short.map(|(service, _)| service).collect();
        }
        let weight = |service: &ServiceId| self.shares.get(&(node, *service)).copied().unwrap_or_default();
        self.tight.iter().filter(|service| is_short(service, weight(service))).copied().collect()
    }

    /// Brings the open capacity of all services up to the last change of a node. [`State::apply`] leaves this for
    /// later, because the kernel's part of a zero need not wait for it, and begins with it.
    pub fn settle(&mut self) {
        let Some(node) = self.unsettled.take() else { return };
        let closed = self.is_node_zero(node);
        let (mut capacity, mut tight) = (self.capacity.clone(), self.tight.clone());
        let shares = self.node_shares(node).map(|(service, weight)| (service.0, weight));
        capacity.update(shares, |service, capacity, weight| {
            let was_tight = capacity.is_short_without(capacity.largest);
            capacity.open =
                if closed { capacity.open.saturating_sub(weight) } else { capacity.open.saturating_add(weight) };
            match (was_tight, capacity.is_short_without(capacity.largest)) {
                (false, true) => drop(tight.insert(ServiceId(service))),
                (true, false) => drop(tight.remove(&ServiceId(service))),
                _ => {}
            }
        });
        (self.capacity, self.tight) = (capacity, tight);
    }
}

/// Whether the service would panic with no node zeroed; then health is unreliable and all backends count. Zeros of nodes
/// are left out, so that the sums by node stay right when one comes or goes.
fn is_doubtful(service: &Service) -> bool {
    panics_with(service, |backend| backend.zero.is_none())
}

fn panics_with(service: &Service, is_open: impl Fn(&Backend) -> bool) -> bool {
    let threshold = usize::from(service.health_policy.panic_threshold);
    if threshold == 0 || service.backends.iter().all(Backend::is_healthy) {
        return false;
    }
    let (mut counted, mut healthy) = (0_usize, 0_usize);
    for backend in service.backends.iter().filter(|backend| backend.counts_for_panic() && is_open(backend)) {
        if weight_in(service, backend) > 0 {
            counted += 1;
            healthy += usize::from(backend.is_healthy());
        }
    }
    healthy * 100 < threshold * counted
}

/// Weight of a backend as capacity: none in a group that gets no connections.
fn weight_in(service: &Service, backend: &Backend) -> u64 {
    let group = service.groups.get(backend.group as usize);
    if group.is_some_and(|group| group.weight > 0) { backend.weight.into() } else { 0 }
}

/// Weight of a service on each of its nodes, without backends that are zeroed themselves or not fit.
pub(super) fn shares(service: &Service) -> BTreeMap<NodeId, u64> {
    let mut shares = BTreeMap::new();
    let is_doubtful = is_doubtful(service);
    for backend in service.backends.iter().filter(|backend| backend.node != NodeId(0)) {
        let takes = backend.zero.is_none() && backend.is_fit(is_doubtful);
        let weight = if takes { weight_in(service, backend) } else { 0 };
        *shares.entry(backend.node).or_insert(0) += weight;
    }
    shares
}
