//! Random sequences of changes: every index equals what is computed naively from services and nodes, ids are unique,
//! stay with what they stand for, and are not used again before their release.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::model::{
    Backend, BackendId, NodeId, ServiceId,
    capacity::{Capacity, WHOLE},
    state::{FrontendKey, Holder},
};

/// What happens in one step. Small numbers, so that steps meet.
#[derive(Clone, Debug)]
enum Step {
    Change(Box<Change>),
    /// Everything that was removed so far comes back to the pools.
    Release,
}

fn backend_name(index: u8) -> String {
    format!("b{index}")
}

fn spec() -> impl Strategy<Value = Value> {
    let frontends = prop::collection::btree_set((0u8..6, any::<bool>()), 1..3);
    let backend = (0u8..8, 0u8..5, prop::sample::select(vec![0u32, 1, 7, 100]), any::<bool>());
    let backends = prop::collection::btree_map(0u8..5, backend, 0..5);
    let groups = prop::option::of((0u32..3, 0u32..3));
    let percent = prop::sample::select(vec![0, 50, 100]);
    (frontends, backends, groups, percent).prop_map(|(frontends, backends, groups, percent)| {
        let frontends: Vec<_> = frontends
            .into_iter()
            .map(|(host, udp)| format!("10.9.0.{}:80{}", host + 1, if udp { "/udp" } else { "" }))
            .collect();
        let backends: Vec<_> = backends
            .into_iter()
            .map(|(name, (host, node, weight, second))| {
                // Some addresses are frontends of others: those must be refused.
                let network = if host > 6 { 9 } else { 8 };
                let mut backend = json!({
                    "name": backend_name(name), "address": format!("10.{network}.0.{}:80", host % 7 + 1), "weight": weight,
                });
                if node > 0 {
                    backend["node"] = json!(format!("node-{node}"));
                }
                if groups.is_some() {
                    backend["group"] = json!(if second { "y" } else { "x" });
                }
                backend
            })
            .collect();
        let groups = groups.map(|(x, y)| json!([{"name": "x", "weight": x}, {"name": "y", "weight": y}]));
        json!({"frontends": frontends, "backends": backends, "groups": groups.unwrap_or(json!([])), "minReadyPercent": percent})
    })
}

fn any_target() -> impl Strategy<Value = String> {
    let node = (1u8..5).prop_map(|node| format!("node/node-{node}"));
    let backend = (0u8..4, 0u8..5).prop_map(|(service, backend)| format!("s{service}/{}", backend_name(backend)));
    prop_oneof![node, backend]
}

fn step() -> impl Strategy<Value = Step> {
    let service = || (0u8..4).prop_map(|service| format!("s{service}"));
    let origin = prop::sample::select(vec![Origin::Api, Origin::File("/a".into()), Origin::File("/b".into())]);
    let put = (service(), spec(), origin, prop::option::of(0u64..4)).prop_map(|(name, spec, origin, if_match)| {
        Change::PutService { document: super::service(&name, spec), origin, if_match: if_match.filter(|m| *m < 2) }
    });
    let patch = (service(), spec()).prop_map(|(service, spec)| super::patch(&service, json!({"spec": spec})));
    let values = prop_oneof![
        (0u32..5).prop_map(|weight| json!({"weight": weight})),
        (0u8..5).prop_map(|node| json!({"node": (node > 0).then(|| format!("node-{node}"))})),
        (1u8..8).prop_map(|host| json!({"address": format!("10.8.0.{host}:80")})),
    ];
    let patch_backend =
        (service(), 0u8..5, values).prop_map(|(s, b, patch)| super::patch_backend(&s, &backend_name(b), patch));
    let node = || (1u8..5).prop_map(|node| format!("node-{node}"));
    let nodes = prop_oneof![
        node().prop_map(|node| Change::PutNode { document: super::node(&node) }),
        node().prop_map(|node| Change::DeleteNode { node: name(&node) }),
        node().prop_map(|node| Change::UndeclareNode { node: name(&node) }),
    ];
    let expires = prop::option::of((0i64..4).prop_map(at));
    let zero =
        (any_target(), expires, any::<bool>()).prop_map(|(t, expires, force)| zero_by(&t, "ops", expires, force));
    let change = prop_oneof![
        4 => put,
        2 => patch,
        3 => patch_backend,
        1 => service().prop_map(|service| delete(&service)),
        1 => nodes,
        4 => zero,
        2 => any_target().prop_map(|target| restore(&target)),
    ];
    prop_oneof![
        20 => change.prop_map(|change| Step::Change(Box::new(change))),
        1 => Just(Step::Release),
    ]
}

/// Ids removed and not yet released.
#[derive(Default)]
struct Quarantine {
    services: BTreeSet<ServiceId>,
    backends: BTreeSet<BackendId>,
    nodes: BTreeSet<NodeId>,
}

impl Quarantine {
    fn add(&mut self, touched: &Touched) {
        self.services.extend(touched.removed_services.iter().map(|(id, _)| *id));
        self.backends.extend(&touched.removed_backends);
        self.nodes.extend(touched.removed_nodes.iter().map(|(id, _)| *id));
    }

    fn release(&mut self, state: &mut State) {
        let Self { services, backends, nodes } = std::mem::take(self);
        let (services, backends, nodes): (Vec<_>, Vec<_>, Vec<_>) =
            (services.into_iter().collect(), backends.into_iter().collect(), nodes.into_iter().collect());
        state.release(&backends, &services, &nodes);
    }
}

/// The part of the connections that a backend has while all are open, computed for itself alone.
fn part(service: &crate::model::Service, backend: &Backend) -> u64 {
    let weight_of = |group: u32| u128::from(service.groups[group as usize].weight);
    let sum = |group: u32| -> u128 {
        service.backends.iter().filter(|b| b.group == group).map(|b| u128::from(b.weight)).sum()
    };
    let all: u128 = (0..service.groups.len() as u32).filter(|group| sum(*group) > 0).map(weight_of).sum();
    let of = all * sum(backend.group);
    let share = u128::from(WHOLE) * weight_of(backend.group) * u128::from(backend.weight);
    if of == 0 { 0 } else { share.div_ceil(of) as u64 }
}

/// Every index, computed from nothing but services and nodes.
fn check_indexes(state: &State) {
    let mut state = state.clone();
    state.settle();
    let mut frontends = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    let mut endpoints = BTreeSet::new();
    let mut shares = BTreeMap::new();
    let mut owners = BTreeMap::new();
    let mut expiries = BTreeSet::new();
    let mut names = BTreeMap::new();
    for (id, service) in state.services.iter() {
        assert_eq!(service.id.0, id);
        assert!(names.insert(service.name.clone(), service.id).is_none(), "two services {}", service.name);
        let protocols: BTreeSet<_> = service.frontends.iter().map(|frontend| frontend.protocol).collect();
        for frontend in &service.frontends {
            assert!(frontends.insert(FrontendKey::from(frontend), service.id).is_none(), "{frontend} twice");
        }
        let (mut total, mut open) = (0, 0);
        for backend in &service.backends {
            assert!(owners.insert(backend.id.0, service.id).is_none(), "backend {:?} twice", backend.id);
            for protocol in &protocols {
                let endpoint = FrontendKey::new(backend.address, *protocol);
                *addresses.entry(endpoint.hash()).or_insert(0u32) += 1;
                endpoints.insert(endpoint);
            }
            let weight = part(service, backend);
            total += weight;
            open += if state.is_open(backend) { weight } else { 0 };
            if backend.node != NodeId(0) {
                assert!(state.node_by_id(backend.node).is_some());
                *shares.entry((backend.node, service.id)).or_insert(0) +=
                    if backend.zero.is_some() { 0 } else { weight };
            }
            expiries.extend(backend.zero.as_ref().and_then(|z| z.expires).map(|at| (at, Holder::Backend(backend.id))));
        }
        let percent = if total == 0 { 0 } else { u64::from(service.min_ready_percent) };
        let floor = (WHOLE / 100 * percent).max(1);
        let mine = shares.iter().filter(|((_, of), _)| *of == service.id).map(|(_, weight)| *weight);
        let largest = mine.max().unwrap_or_default();
        assert_eq!(state.capacity.get(id), Some(&Capacity { open, floor, largest }), "{}", service.name);
        let is_tight = largest > 0 && open.saturating_sub(largest) < floor;
        assert_eq!(state.tight.contains(&service.id), is_tight, "{}", service.name);
    }
    let mut node_names = BTreeMap::new();
    for (id, node) in state.nodes.iter() {
        assert_eq!(node.id.0, id);
        assert!(node_names.insert(node.name.clone(), node.id).is_none());
        expiries.extend(node.zero.as_ref().and_then(|zero| zero.expires).map(|at| (at, Holder::Node(node.id))));
        let used = shares.keys().any(|(on, _)| *on == node.id);
        assert!(node.declared || node.zero.is_some() || used, "nothing holds {}", node.name);
        let on_it = shares.iter().filter(|((on, _), weight)| *on == node.id && **weight > 0);
        let short = on_it.filter(|((_, of), weight)| {
            state.capacity.get(of.0).is_some_and(|held| held.open.saturating_sub(**weight) < held.floor)
        });
        let short: Vec<_> = short.map(|((_, of), _)| *of).collect();
        let found: Vec<_> = state.short_without(node.id).into_iter().map(|(service, _)| service).collect();
        assert_eq!(found, short, "{}", node.name);
    }
    assert_eq!(state.capacity.iter().count(), names.len());
    assert_eq!(state.owners.iter().map(|(id, service)| (id, *service)).collect::<BTreeMap<_, _>>(), owners);
    fn plain<K: Ord + Clone, V: Clone>(map: &imbl::OrdMap<K, V>) -> BTreeMap<K, V> {
        map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    assert_eq!(plain(&state.services_by_name), names);
    assert_eq!(plain(&state.nodes_by_name), node_names);
    assert_eq!(plain(&state.frontends), frontends);
    assert_eq!(plain(&state.addresses), addresses);
    assert_eq!(plain(&state.shares), shares);
    assert_eq!(state.expiries.iter().copied().collect::<BTreeSet<_>>(), expiries);
    assert!(frontends.keys().all(|frontend| !endpoints.contains(frontend)), "a loop");
}

/// What each id stands for.
#[derive(Debug, PartialEq)]
struct Meanings {
    services: BTreeMap<ServiceId, Name>,
    backends: BTreeMap<BackendId, (Name, Name, String)>,
    nodes: BTreeMap<NodeId, Name>,
}

impl Meanings {
    fn of(state: &State) -> Self {
        let backends = state.services().flat_map(|service| {
            let whole = |b: &Backend| (b.id, (service.name.clone(), b.name.clone(), b.address.to_string()));
            service.backends.iter().map(whole)
        });
        Self {
            services: state.services().map(|service| (service.id, service.name.clone())).collect(),
            backends: backends.collect(),
            nodes: state.nodes().map(|node| (node.id, node.name.clone())).collect(),
        }
    }

    /// Whether everything that is in both has the same id.
    fn agrees(&self, later: &Self) -> bool {
        same_ids(&self.services, &later.services)
            && same_ids(&self.backends, &later.backends)
            && same_ids(&self.nodes, &later.nodes)
    }
}

fn same_ids<K: Copy + Eq, V: Ord>(before: &BTreeMap<K, V>, after: &BTreeMap<K, V>) -> bool {
    let after: BTreeMap<_, _> = after.iter().map(|(id, meaning)| (meaning, *id)).collect();
    before.iter().all(|(id, meaning)| after.get(meaning).is_none_or(|later| later == id))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 1_000 }))]

    #[test]
    fn any_sequence_keeps_every_index_and_id(steps in prop::collection::vec(step(), 1..60)) {
        let limits = Limits { services: 9, backends: 40, nodes: 8, frontends: 8 };
        let mut state = State::new(limits);
        let mut quarantine = Quarantine::default();
        for step in steps {
            let change = match step {
                Step::Release => {
                    quarantine.release(&mut state);
                    continue;
                }
                Step::Change(change) => change,
            };
            let before = Meanings::of(&state);
            let documents = |state: &State| state.services().map(|s| state.document(s)).collect::<Vec<_>>();
            let written = documents(&state);
            let applied = state.apply(&change, at(0));
            prop_assert_eq!(&Meanings::of(&state), &before, "the old state is as it was");
            prop_assert_eq!(&documents(&state), &written);
            let Ok(applied) = applied else { continue };
            let after = Meanings::of(&applied.state);
            prop_assert!(before.agrees(&after), "an id changed: {:?} {:?}", before, after);
            // What is touched is all that differs.
            let gone: BTreeSet<_> = before.backends.keys().filter(|id| !after.backends.contains_key(id)).copied().collect();
            prop_assert_eq!(gone, applied.touched.removed_backends.iter().copied().collect::<BTreeSet<_>>());
            for service in applied.state.services() {
                let same = state.service_by_id(service.id) == Some(service);
                prop_assert!(same || applied.touched.services.contains(&service.id));
            }
            for node in applied.state.nodes() {
                let same = state.node_by_id(node.id) == Some(node);
                prop_assert!(same || applied.touched.nodes.contains(&node.id));
            }
            quarantine.add(&applied.touched);
            prop_assert!(quarantine.services.iter().all(|id| !after.services.contains_key(id)), "a service id came back");
            prop_assert!(quarantine.backends.iter().all(|id| !after.backends.contains_key(id)), "a backend id came back");
            prop_assert!(quarantine.nodes.iter().all(|id| !after.nodes.contains_key(id)), "a node id came back");
            check_indexes(&applied.state);
            // Again: nothing changes, or it is refused (as gone, or stale).
            if let Ok(again) = applied.state.apply(&change, at(1)) {
                prop_assert_eq!(again.outcome, Outcome::Unchanged, "{:?}", change);
                prop_assert!(again.touched.is_empty());
            }
            state = applied.state;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 96 } else { 1_000 }))]

    #[test]
    fn changes_together_come_to_the_same_in_any_order(
        steps in prop::collection::vec(step(), 0..20),
        specs in prop::collection::vec(prop::option::weighted(0.8, spec()), 4),
    ) {
        let mut state = State::new(Limits { services: 99, backends: 999, nodes: 999, frontends: 8 });
        for step in steps {
            if let Step::Change(change) = step {
                state = state.apply(&change, at(0)).map_or(state, |applied| applied.state);
            }
        }
        // One change for each service: another document, or its end.
        let changes: Vec<_> = specs.into_iter().enumerate().filter_map(|(index, spec)| {
            let name = format!("s{index}");
            match spec {
                Some(spec) => Some(super::put(&name, spec)),
                None => state.service(&name).map(|_| delete(&name)),
            }
        }).collect();
        let forth: Vec<_> = changes.iter().collect();
        let back: Vec<_> = changes.iter().rev().collect();
        let documents = |state: &State| state.services().map(|s| state.document(s)).collect::<Vec<_>>();
        match (state.apply_together(&forth, at(1)), state.apply_together(&back, at(1))) {
            (Ok(one), Ok(other)) => {
                prop_assert_eq!(documents(&one.state), documents(&other.state));
                check_indexes(&one.state);
                check_indexes(&other.state);
            }
            (Err(_), Err(_)) => {}
            (one, other) => prop_assert!(false, "{:?} {:?}", one.map(|_| ()), other.map(|_| ())),
        }
    }
}
