//! How much each service has open, how much it must keep, and when so few of it are healthy that all serve.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
};

use super::{Backend, Name, NodeId, Refusal, Service, ServiceId, State, Touched, apply::list};

/// The capacity of a service whose backends are all open: all of its connections. Shares of it are rounded up, so that
/// those of 10,000 backends come to no more than a part in 10^11 too much, and never to too little.
pub(super) const WHOLE: u64 = 1_000_000_000_000_000;

/// What a zero leaves is compared with this. In parts of [`WHOLE`], by the shares of groups and backends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Share of the open and healthy backends.
    pub open: u64,
    /// The least that a zero must leave open; at least 1.
    pub floor: u64,
    /// The most that the zero of any one node can take.
    pub largest: u64,
}

impl Capacity {
    /// Whether less than the service must keep is open without this share.
    pub fn is_short_without(&self, share: u64) -> bool {
        share > 0 && self.open.saturating_sub(share) < self.floor
    }

    /// That so much of the service is left open, which is too little.
    pub fn shortage(&self, service: &Service) -> Shortage {
        Shortage { service: service.name.clone(), left: self.open, percent: service.min_ready_percent }
    }
}

/// A service that a change would leave with less open capacity than it must keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub service: Name,
    /// What would be left, in parts of [`WHOLE`].
    left: u64,
    /// What it must keep, in percent.
    percent: u8,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, left, percent } = self;
        match left {
            0 => write!(f, "{service} (nothing open"),
            // Rounded down: 49.99 % is less than 50 %.
            left => write!(f, "{service} ({} % open", (left / (WHOLE / 10_000)) as f64 / 100.0),
        }?;
        if *percent > 0 { write!(f, ", {percent} % wanted)") } else { f.write_str(")") }
    }
}

/// Refuses what `doing` would do to these services, if there are any.
///
/// # Errors
/// A conflict that names them with the numbers.
pub fn shortages(doing: &str, short: Vec<Shortage>) -> Result<(), Refusal> {
    if short.is_empty() {
        return Ok(());
    }
    let message = format!(
        "{doing} would leave {} without enough open capacity: open other backends first, or force it",
        list(&short)
    );
    Err(Refusal::conflict(message, short.into_iter().map(|short| short.service).collect()))
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
        for (backend, part) in service.backends.iter().zip(parts(service)) {
            total += part;
            if self.is_open(backend) && backend.is_fit(is_doubtful) {
                open += part;
            }
        }
        let floor = if total > 0 { floor(service).max(1) } else { 1 };
        Capacity { open, floor, largest: shares(service).into_values().max().unwrap_or_default() }
    }

    /// Services that a change of documents leaves with less than they must keep, and with less than they had in this
    /// state. What it closes, by a weight of 0 or by taking a backend out, is missed as if it were zeroed; a backend that
    /// it opens counts as an average one did before. `at_least_one`: a service must keep an open backend though its
    /// document asks for nothing.
    pub fn short_after(&self, after: &Self, touched: &Touched, at_least_one: bool) -> Vec<Shortage> {
        let mut seen = BTreeSet::new();
        let services = touched.services.iter().filter(|id| seen.insert(**id));
        services
            .filter_map(|id| {
                let (old, new) = (self.service_by_id(*id)?, after.service_by_id(*id)?);
                let (before, left) = (self.measure(old), self.remains(old, after, new));
                let floor = floor(new).max(at_least_one.into());
                (left < before.open && left < floor).then(|| Capacity { open: left, ..before }.shortage(new))
            })
            .collect()
    }

    /// What is open of `new` in the state `after`, by the shares that `old` had here.
    fn remains(&self, old: &Service, after: &Self, new: &Service) -> u64 {
        let held: HashMap<&Name, u64> = old.backends.iter().map(|b| &b.name).zip(parts(old)).collect();
        let shared = held.values().filter(|part| **part > 0).count() as u64;
        let average = WHOLE.div_ceil(shared.max(1));
        let is_doubtful = is_doubtful(new);
        let open = new.backends.iter().filter(|b| is_weighted(new, b) && after.is_open(b) && b.is_fit(is_doubtful));
        let part = |backend: &Backend| held.get(&backend.name).copied().filter(|part| *part > 0).unwrap_or(average);
        open.map(part).sum::<u64>().min(WHOLE)
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
    /// With what would be left.
    pub(super) fn short_without(&self, node: NodeId) -> Vec<(ServiceId, Capacity)> {
        let left = |(service, share): (ServiceId, u64)| {
            let capacity = self.capacity.get(service.0).filter(|capacity| capacity.is_short_without(share))?;
            Some((service, Capacity { open: capacity.open.saturating_sub(share), ..*capacity }))
        };
        if self.node_shares(node).nth(self.tight.len()).is_none() {
            return self.node_shares(node).filter_map(left).collect();
        }
        let share = |service: &ServiceId| self.shares.get(&(node, *service)).copied().unwrap_or_default();
        self.tight.iter().map(|service| (*service, share(service))).filter_map(left).collect()
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
        if is_weighted(service, backend) {
            counted += 1;
            healthy += usize::from(backend.is_healthy());
        }
    }
    healthy * 100 < threshold * counted
}

/// Whether a backend gets connections as far as its weight and its group's say.
fn is_weighted(service: &Service, backend: &Backend) -> bool {
    backend.weight > 0 && service.groups.get(backend.group as usize).is_some_and(|group| group.weight > 0)
}

/// What a service must keep open, in parts of [`WHOLE`], as its document asks.
fn floor(service: &Service) -> u64 {
    WHOLE / 100 * u64::from(service.min_ready_percent)
}

/// The share of each backend while all are open, in parts of [`WHOLE`] and in the document's order: its group's among the
/// groups that have any, times its own within the group.
fn parts(service: &Service) -> impl Iterator<Item = u64> {
    let mut sums = vec![0_u64; service.groups.len()];
    for backend in &service.backends {
        if let Some(sum) = sums.get_mut(backend.group as usize) {
            *sum += u64::from(backend.weight);
        }
    }
    let all: u64 =
        service.groups.iter().zip(&sums).filter(|(_, sum)| **sum > 0).map(|(g, _)| u64::from(g.weight)).sum();
    service.backends.iter().map(move |backend| {
        let index = backend.group as usize;
        let (Some(group), Some(sum)) = (service.groups.get(index), sums.get(index)) else { return 0 };
        let share = u128::from(WHOLE) * u128::from(group.weight) * u128::from(backend.weight);
        let of = u128::from(all) * u128::from(*sum);
        if of == 0 { 0 } else { u64::try_from(share.div_ceil(of)).unwrap_or(WHOLE) }
    })
}

/// Share of a service on each of its nodes, in parts of [`WHOLE`], without backends that are zeroed themselves or not
/// fit.
pub(super) fn shares(service: &Service) -> BTreeMap<NodeId, u64> {
    let mut shares = BTreeMap::new();
    let is_doubtful = is_doubtful(service);
    for (backend, part) in service.backends.iter().zip(parts(service)).filter(|(b, _)| b.node != NodeId(0)) {
        let takes = backend.zero.is_none() && backend.is_fit(is_doubtful);
        *shares.entry(backend.node).or_insert(0) += if takes { part } else { 0 };
    }
    shares
}
