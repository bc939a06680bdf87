//! Services and nodes by example: what a change answers, and what it keeps.

use super::*;
use crate::model::{Frontend, NodeId, RefusalKind};

#[test]
fn a_repeated_change_changes_nothing() {
    let mut world = World::new();
    for (change, first) in [
        (put("shop", shop()), Outcome::Created),
        (patch("shop", json!({"spec": {"balance": "hash"}})), Outcome::Replaced),
        (patch_backend("shop", "n1", json!({"weight": 5})), Outcome::Replaced),
        (Change::PutNode { document: node("node-1") }, Outcome::Replaced),
        (Change::PutNode { document: node("node-9") }, Outcome::Created),
        (zero("node/node-1"), Outcome::Replaced),
        (zero("shop/n1"), Outcome::Replaced),
        (restore("node/node-1"), Outcome::Replaced),
        (restore("shop/n1"), Outcome::Replaced),
        (Change::UndeclareNode { node: name("node-1") }, Outcome::Replaced),
    ] {
        assert_eq!(world.apply(&change), first, "{change:?}");
        let before = (world.state.revision(), world.service("shop").clone());
        assert_eq!(world.apply(&change), Outcome::Unchanged, "{change:?}");
        assert!(world.touched.is_empty());
        assert_eq!(before, (world.state.revision(), world.service("shop").clone()));
    }
    let same = *service("shop", shop());
    world.apply(&put("shop", shop()));
    let written = world.state.document(world.service("shop"));
    assert_eq!(written, same);
}

#[test]
fn a_document_comes_back_as_it_was_written() {
    let mut world = World::new();
    let spec = json!({
        "frontends": ["10.96.0.10:80", "[fd00:96::10]:80", "10.96.0.10:53/udp"],
        "balance": "random", "onNoBackend": "pass", "minReadyPercent": 40,
        "groups": [{"name": "stable", "weight": 95}, {"name": "canary", "weight": 5}, {"name": "empty", "weight": 0}],
        "backends": [
            {"name": "n1", "address": "10.0.0.1:8080", "node": "node-1", "group": "stable", "weight": 7},
            {"name": "n2", "address": "10.0.0.2:8080", "group": "canary", "weight": 0},
        ],
    });
    world.put("shop", spec.clone());
    let document = world.state.document(world.service("shop"));
    assert_eq!(serde_json::to_value(&document).unwrap()["spec"], spec);

    // The group of a backend may be left out when there is one.
    let spec = json!({
        "frontends": ["10.96.0.10:80"], "groups": [{"name": "all"}],
        "backends": [{"name": "n1", "address": "10.0.0.1:8080"}],
    });
    world.put("one", patched(&spec, json!({"frontends": ["10.96.0.11:80"]})));
    let written = serde_json::to_value(world.state.document(world.service("one"))).unwrap();
    let expected = json!({"name": "n1", "address": "10.0.0.1:8080", "group": "all", "weight": 100});
    assert_eq!(written["spec"]["backends"][0], expected);
    assert_eq!(written["spec"]["groups"], json!([{"name": "all", "weight": 100}]));
}

fn patched(spec: &Value, patch: Value) -> Value {
    let mut spec = spec.clone();
    crate::model::merge::merge(&mut spec, patch.as_object().unwrap());
    spec
}

#[test]
fn ids_stay_while_name_and_address_do() {
    let mut world = World::new();
    world.put("shop", shop());
    let (n1, n2) = (world.id("shop", "n1"), world.id("shop", "n2"));

    // Order, weight and node do not matter; a new backend takes a new id.
    world.put(
        "shop",
        json!({
            "frontends": ["10.96.0.10:80", "10.96.0.10:81"],
            "backends": [
                {"name": "n3", "address": "10.0.0.3:8080"},
                {"name": "n2", "address": "10.0.0.2:8080", "node": "node-1", "weight": 1},
                {"name": "n1", "address": "10.0.0.1:8080"},
            ],
        }),
    );
    assert_eq!((world.id("shop", "n1"), world.id("shop", "n2")), (n1, n2));
    let n3 = world.id("shop", "n3");
    assert!(n3 != n1 && n3 != n2);
    assert_eq!(world.touched.removed_nodes.len(), 1, "node-2 has no backend any more");

    // Another address, or another name, is another backend.
    world.apply(&patch_backend("shop", "n1", json!({"address": "10.0.0.1:8081"})));
    assert_eq!(world.touched.removed_backends, [crate::model::BackendId(n1)]);
    let moved = world.id("shop", "n1");
    assert!(![n1, n2, n3].contains(&moved));
    assert_eq!(world.state.backend(crate::model::BackendId(moved)).unwrap().1.name, "n1");
    assert!(world.state.backend(crate::model::BackendId(n1)).is_none());

    // A removed id comes back after its release only.
    world.apply(&patch("shop", json!({"spec": {"backends": []}})));
    world.put("shop", shop());
    assert!(world.id("shop", "n1") > moved && world.id("shop", "n2") > moved);
    world.state.release(&[crate::model::BackendId(n1)], &[], &[]);
    world.put("cart", json!({"frontends": ["10.96.0.11:80"], "backends": [{"name": "a", "address": "10.0.0.9:1"}]}));
    assert_eq!(world.id("cart", "a"), n1);
    // One that is in use is not given away, whatever is said.
    world.state.release(&[crate::model::BackendId(n1)], &[world.service("cart").id], &[NodeId(0)]);
    world.put("news", json!({"frontends": ["10.96.0.12:80"], "backends": [{"name": "a", "address": "10.0.0.9:1"}]}));
    assert_ne!(world.id("news", "a"), n1);
    assert_ne!(world.service("news").id, world.service("cart").id);
}

#[test]
fn ids_that_the_kernel_holds_are_not_given_away() {
    use crate::model::{BackendId, ServiceId};
    let mut world = World::new();
    world.state.reserve(&[BackendId(0), BackendId(2)], &[ServiceId(0)], &[NodeId(0), NodeId(1)]);
    world.put("shop", shop());
    assert_eq!((world.id("shop", "n1"), world.id("shop", "n2")), (1, 3));
    assert_eq!(world.service("shop").id.0, 1);
    assert_eq!(world.state.node("node-1").unwrap().id.0, 2);
    world.state.release(&[BackendId(0)], &[ServiceId(0)], &[NodeId(1)]);
    world.put(
        "cart",
        json!({"frontends": ["10.96.0.11:80"], "backends": [{"name": "a", "address": "10.0.0.9:1", "node": "x"}]}),
    );
    assert_eq!((world.id("cart", "a"), world.service("cart").id.0, world.state.node("x").unwrap().id.0), (0, 0, 1));
}

#[test]
fn a_stale_writer_is_refused() {
    let put_at = |spec, if_match| Change::PutService { document: service("shop", spec), origin: Origin::Api, if_match };
    let patch_at = |generation| Change::PatchService {
        service: name("shop"),
        patch: json!({"spec": {"balance": "hash"}}),
        if_match: Some(generation),
    };
    let mut world = World::new();
    assert_eq!(world.try_apply(&put_at(shop(), Some(1))).unwrap_err().kind, RefusalKind::Stale);
    assert_eq!(world.apply(&put_at(shop(), Some(0))), Outcome::Created);
    assert_eq!(world.service("shop").generation, 1);
    assert_eq!(world.try_apply(&put_at(shop(), Some(0))).unwrap_err().kind, RefusalKind::Stale);

    // Two writers with the same generation: the second is refused.
    assert_eq!(world.apply(&patch_at(1)), Outcome::Replaced);
    assert_eq!(world.service("shop").generation, 2);
    for change in [
        patch_at(1),
        put_at(shop(), Some(1)),
        Change::DeleteService { service: name("shop"), if_match: Some(1) },
        Change::PatchBackend { service: name("shop"), backend: name("n1"), patch: json!({}), if_match: Some(1) },
    ] {
        let refusal = world.try_apply(&change).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Stale);
        assert!(refusal.message.contains("generation 2, not 1"), "{refusal}");
    }
    // A zero is no change of the document.
    world.apply(&zero("shop/n1"));
    world.apply(&zero_by("node/node-1", "ops", None, true));
    assert_eq!(world.service("shop").generation, 2);
    assert_eq!(world.apply(&Change::DeleteService { service: name("shop"), if_match: Some(2) }), Outcome::Deleted);
}

#[test]
fn services_do_not_get_in_each_others_way() {
    let other = |frontend: &str, backend: &str| {
        put("other", json!({"frontends": [frontend], "backends": [{"name": "b", "address": backend}]}))
    };
    let mut world = World::new();
    world.put("shop", shop());
    world.put(
        "dns",
        json!({"frontends": ["10.96.0.53:53/udp"], "backends": [{"name": "d", "address": "10.0.0.1:5353"}]}),
    );
    for (change, why) in [
        (other("10.96.0.10:80", "10.0.0.1:1"), "spec.frontends[0]: 10.96.0.10:80 is a frontend of shop already"),
        (
            other("[::ffff:10.96.0.10]:80", "10.0.0.1:1"),
            "spec.frontends[0]: 10.96.0.10:80 is a frontend of shop already",
        ),
        (other("10.96.0.99:80", "10.96.0.10:80"), "spec.backends[0].address: 10.96.0.10:80/tcp is a frontend of shop"),
        (other("10.96.0.99:80", "10.96.0.99:80"), "spec.frontends[0]: 10.96.0.99:80 is the address of backend other/b"),
        (other("10.0.0.1:8080", "10.0.0.9:80"), "spec.frontends[0]: 10.0.0.1:8080 is the address of backend shop/n1"),
        (
            patch_backend("shop", "n2", json!({"address": "10.96.0.10:80"})),
            "address: 10.96.0.10:80/tcp is a frontend of shop",
        ),
        (
            patch("dns", json!({"spec": {"frontends": ["10.96.0.53:53", "10.0.0.1:8080"]}})),
            "spec.frontends[1]: 10.0.0.1:8080 is the address of backend shop/n1",
        ),
    ] {
        let before = world.state.revision();
        assert!(world.refusal(&change).starts_with(why), "{}", world.refusal(&change));
        assert_eq!(world.state.revision(), before);
    }
    // The other protocol is another address.
    assert_eq!(world.apply(&other("10.0.0.1:8080/udp", "10.96.0.10:80")), Outcome::Created);
    // ... until the service takes that protocol too.
    let both = json!({"spec": {"frontends": ["10.0.0.1:8080/udp", "10.96.0.99:80"]}});
    let why = "spec.backends[0].address: 10.96.0.10:80/tcp is a frontend of shop";
    assert!(world.refusal(&patch("other", both.clone())).starts_with(why));
    // What a service gives up is free for others.
    world.apply(&delete("shop"));
    assert_eq!(world.apply(&patch("other", both)), Outcome::Replaced);
    let found = world.state.frontend(&"10.96.0.99:80".parse::<Frontend>().unwrap());
    assert_eq!(found, Some(world.service("other").id));
    assert_eq!(world.state.frontend(&"10.96.0.10:80".parse::<Frontend>().unwrap()), None);
}

#[test]
fn a_patch_names_the_field_and_changes_no_name() {
    let mut world = World::new();
    world.put("shop", shop());
    for (change, why) in [
        (patch("shop", json!([1])), "a merge patch is an object"),
        (patch("shop", json!({"metadata": {"name": "cart"}})), "metadata.name: a patch cannot rename shop"),
        (patch("shop", json!({"kind": "Node", "spec": null})), "kind: a patch cannot change the kind"),
        (patch("shop", json!({"spec": {"minReadyPercent": -1}})), "spec.minReadyPercent: a percentage is"),
        (patch("shop", json!({"spec": {"frontends": null}})), "spec.frontends: missing field"),
        (patch("shop", json!({"spec": {"size": 1}})), "spec.size: unknown field"),
        (
            patch("shop", json!({"spec": {"backends": [{"name": "n1", "address": "10.0.0.1"}]}})),
            "spec.backends[0].address: \"10.0.0.1\" is no address",
        ),
        (patch("cart", json!({})), "there is no service cart"),
        (
            patch_backend("shop", "n1", json!({"weight": -1})),
            "weight: a weight is a whole number from 0 to 1000000, not -1",
        ),
        (patch_backend("shop", "n1", json!({"weight": 1_000_001})), "weight: a weight is"),
        (patch_backend("shop", "n1", json!({"name": "n9"})), "name: a patch cannot rename n1"),
        (patch_backend("shop", "n1", json!({"address": "10.0.0.1:0"})), "address: port 0"),
        (patch_backend("shop", "n1", json!({"address": "[fd00::1]:80"})), "address: frontend 10.96.0.10:80 is IPv4"),
        (patch_backend("shop", "n1", json!({"group": "blue"})), "group: \"blue\" is none of spec.groups"),
        (patch_backend("shop", "n1", json!({"wieght": 1})), "wieght: unknown field"),
        (patch_backend("shop", "n9", json!({})), "service shop has no backend n9"),
        (patch_backend("cart", "n1", json!({})), "there is no service cart"),
    ] {
        assert!(world.refusal(&change).starts_with(why), "{}", world.refusal(&change));
    }
    world.apply(&patch_backend("shop", "n1", json!({"weight": null, "node": null})));
    let backend = &world.service("shop").backends[0];
    assert_eq!((backend.weight, backend.node), (100, NodeId(0)));
    assert!(world.state.node("node-1").is_none());
    world.apply(&patch("shop", json!({"metadata": {"labels": {"team": "web"}}, "status": {"generation": 9}})));
    assert_eq!(world.service("shop").labels["team"], "web");
    assert_eq!(world.service("shop").generation, 3);
}

#[test]
fn a_document_made_by_hand_is_checked_too() {
    let mut world = World::new();
    for (field, change) in [
        ("spec.backends[0].weight", (|d| d.spec.backends[0].weight = 1_000_001) as fn(&mut ServiceDocument)),
        ("spec.minReadyPercent", |d| d.spec.min_ready_percent = 101),
        ("spec.frontends[0]", |d| d.spec.frontends[0].address.set_port(0)),
        ("spec.frontends[1]", |d| {
            let mut mapped = d.spec.frontends[0];
            mapped.address.set_ip("::ffff:10.96.0.10".parse().unwrap());
            d.spec.frontends.push(mapped);
        }),
        ("spec.backends[0].address", |d| d.spec.backends[0].address.set_ip("::".parse().unwrap())),
    ] {
        let mut document = service("shop", shop());
        change(&mut document);
        let put = Change::PutService { document, origin: Origin::Api, if_match: None };
        let refusal = world.try_apply(&put).unwrap_err();
        assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Invalid, Some(field)));
    }
}

#[test]
fn limits_are_reported() {
    let limits = Limits { services: 2, backends: 3, nodes: 3, frontends: 3 };
    let one = |n: u8, node: &str| {
        let backends = [json!({"name": "b", "address": format!("10.0.0.{n}:80"), "node": node})];
        put(&format!("s{n}"), json!({"frontends": [format!("10.96.0.{n}:80")], "backends": backends}))
    };
    let mut world = World::with(limits);
    world.apply(&one(1, "a"));
    world.apply(&one(2, "b"));
    for (change, why) in [
        (one(3, "a"), "this agent holds at most 2 services"),
        (
            patch("s1", json!({"spec": {"frontends": ["10.1.0.1:1", "10.1.0.1:2", "10.1.0.1:3"]}})),
            "spec.frontends: this agent holds at most 3 frontends",
        ),
        (
            patch(
                "s1",
                json!({"spec": {"backends": [{"name": "c", "address": "10.9.0.1:1"}, {"name": "d", "address": "10.9.0.2:1"}]}}),
            ),
            "spec.backends[1].name: this agent holds at most 3 backends",
        ),
        (patch_backend("s1", "b", json!({"node": "c"})), "node: this agent holds at most 2 nodes"),
        (Change::PutNode { document: node("c") }, "metadata.name: this agent holds at most 2 nodes"),
    ] {
        assert!(world.refusal(&change).starts_with(why), "{}", world.refusal(&change));
    }
    // A refusal took nothing.
    assert_eq!(
        world.apply(&patch("s1", json!({"spec": {"backends": [{"name": "c", "address": "10.9.0.1:1"}]}}))),
        Outcome::Replaced
    );
}

#[test]
fn a_node_lives_while_something_holds_it() {
    let mut world = World::new();
    world.put("shop", shop());
    let node_1 = world.state.node("node-1").unwrap().id;
    let on: Vec<_> = world.state.node_backends(node_1).map(|(s, b)| (s.name.as_str(), b.name.as_str())).collect();
    assert_eq!(on, [("shop", "n1")]);
    assert!(world.state.node_by_id(NodeId(0)).is_none());

    let gone = Change::DeleteNode { node: name("node-1") };
    let refusal = world.try_apply(&gone).unwrap_err();
    assert_eq!((refusal.kind, refusal.services.as_slice()), (RefusalKind::Conflict, [name("shop")].as_slice()));
    world.apply(&Change::PutNode { document: node("node-1") });
    world.apply(&zero("node/node-1"));
    world.apply(&delete("shop"));
    assert_eq!(world.touched.removed_nodes.len(), 1, "node-2 goes, node-1 stays");
    assert!(world.refusal(&gone).contains("restore it first"));
    world.apply(&Change::UndeclareNode { node: name("node-1") });
    assert!(world.state.node("node-1").is_some(), "its zero holds it");
    world.apply(&restore("node/node-1"));
    assert_eq!(world.touched.removed_nodes, [(node_1, name("node-1"))]);
    assert!(world.state.node("node-1").is_none());
    assert_eq!(world.try_apply(&gone).unwrap_err().kind, RefusalKind::NotFound);

    world.apply(&Change::PutNode { document: node("node-1") });
    assert_ne!(world.state.node("node-1").unwrap().id, node_1, "not before its release");
    assert_eq!(world.apply(&gone), Outcome::Deleted);
}

#[test]
fn a_file_keeps_what_it_brought() {
    let file = |path: &str| Origin::File(path.into());
    let from = |origin| Change::PutService { document: service("shop", shop()), origin, if_match: None };
    let mut world = World::new();
    world.apply(&from(Origin::Api));
    assert_eq!(world.apply(&from(file("/a.yaml"))), Outcome::Unchanged);
    assert_eq!(world.touched.services.len(), 1, "the new owner is saved");
    assert_eq!((&world.service("shop").origin, world.service("shop").generation), (&file("/a.yaml"), 1));
    world.apply(&patch_backend("shop", "n1", json!({"weight": 1})));
    world.apply(&from(Origin::Api));
    assert_eq!(world.service("shop").origin, file("/a.yaml"));
    world.apply(&from(file("/b.yaml")));
    assert_eq!(world.service("shop").origin, file("/b.yaml"));
}

#[test]
fn what_does_not_exist_is_not_found() {
    let mut world = World::new();
    world.put("shop", shop());
    for change in [
        delete("cart"),
        zero("cart/n1"),
        zero("shop/n9"),
        zero("node/node-9"),
        restore("cart/n1"),
        restore("shop/n9"),
        restore("node/node-9"),
        Change::DeleteNode { node: name("node-9") },
        Change::UndeclareNode { node: name("node-9") },
    ] {
        assert_eq!(world.try_apply(&change).unwrap_err().kind, RefusalKind::NotFound, "{change:?}");
    }
}

#[test]
fn the_agents_own_api_becomes_no_frontend() {
    let frontends = |list: serde_json::Value| {
        put("shop", json!({"frontends": list, "backends": [{"name": "a", "address": "10.0.0.1:80"}]}))
    };
    for (listen, refused, accepted) in [
        ("127.0.0.1:9180", "127.0.0.1:9180", ["127.0.0.1:9181", "127.0.0.1:9180/udp", "10.96.0.1:9180"]),
        ("0.0.0.0:9180", "127.0.0.2:9180", ["127.0.0.2:9181", "127.0.0.2:9180/udp", "10.96.0.1:9180"]),
    ] {
        let mut world = World::new();
        world.state = world.state.with_api(Some(listen.parse().unwrap()));
        let refusal = world.refusal(&frontends(json!(["10.96.0.2:80", refused])));
        assert!(refusal.starts_with("spec.frontends[1]: ") && refusal.contains("serves its API"), "{refusal}");
        world.apply(&frontends(json!(accepted)));
        let patch = patch("shop", json!({"spec": {"frontends": [refused]}}));
        assert!(world.refusal(&patch).contains("serves its API"));
    }
}
