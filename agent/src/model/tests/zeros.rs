//! Zero and restore: what they keep, and what guards capacity.

use super::*;
use crate::model::{DrainEnd, DrainRequest, Ending, OnDeadline, RefusalKind};

#[test]
fn a_zero_overlays_the_weight_and_survives() {
    let mut world = World::new();
    world.put("shop", shop());
    world.apply(&zero("shop/n1"));
    assert_eq!(world.open("shop"), ["n2"]);
    assert_eq!(world.service("shop").backends[0].weight, 100);

    // A repetition may change owner, reason and end, never the beginning.
    world.now = at(60);
    assert_eq!(world.apply(&zero_by("shop/n1", "pipeline", Some(at(90)), true)), Outcome::Replaced);
    let held = world.service("shop").backends[0].zero.clone().unwrap();
    assert_eq!((held.owner.as_str(), held.since, held.expires), ("pipeline", at(0), Some(at(90))));

    // It survives another document, another weight and another address, as long as the backend keeps its name.
    world.put(
        "shop",
        json!({"frontends": ["10.96.0.10:81"], "backends": [{"name": "n1", "address": "10.0.0.1:9090", "weight": 3}]}),
    );
    assert_eq!(world.open("shop"), [""; 0]);
    assert_eq!(world.state.next_expiry(), Some(at(90)));
    assert_eq!(world.state.expired(at(90)), [target("shop/n1")]);
    world.apply(&restore("shop/n1"));
    assert_eq!((world.open("shop"), world.state.next_expiry()), (vec!["n1"], None));
    assert_eq!(world.service("shop").backends[0].weight, 3);

    // It goes with its backend.
    world.apply(&force("shop/n1"));
    world.apply(&patch("shop", json!({"spec": {"backends": []}})));
    world.put("shop", shop());
    assert_eq!(world.open("shop"), ["n1", "n2"]);
}

#[test]
fn a_repeated_zero_keeps_what_is_left_out_and_ends_no_other_early() {
    let (short, long) = (Some(at(30)), Some(at(90)));
    for (owner, expires, by, then, force, whose, until) in [
        // Repeated without a word.
        ("me", short, "", None, false, "me", short),
        ("me", short, "me", None, false, "me", short),
        ("", None, "", None, false, "api", None),
        // Its owner may change it.
        ("me", long, "me", short, false, "me", short),
        ("", None, "", short, false, "api", short),
        // Somebody else may make it longer.
        ("me", short, "you", long, false, "you", long),
        ("me", short, "you", None, false, "you", None),
        ("me", None, "you", None, true, "you", None),
        // And only who does has it from then on: or else the second time would be as its owner.
        ("me", long, "you", short, false, "me", long),
        ("me", long, "you", long, false, "me", long),
        ("me", None, "you", short, false, "me", None),
        ("me", None, "you", None, false, "me", None),
        ("me", None, "", short, false, "me", None),
        ("me", None, "you", short, true, "you", short),
    ] {
        let mut world = World::new();
        world.put("shop", shop());
        world.apply(&zero_by("node/node-1", owner, expires, false));
        world.apply(&zero_by("node/node-1", by, then, force));
        let held = world.state.node("node-1").unwrap().zero.clone().unwrap();
        let case = format!("{owner} {expires:?}, then {by} {then:?} {force}");
        assert_eq!((held.owner.as_str(), held.expires), (whose, until), "{case}");
    }
}

#[test]
fn a_drain_repeated_by_another_neither_ends_nor_takes_the_zero() {
    let (short, long) = (Some(at(30)), Some(at(90)));
    let drain = |by: &str, expires, force, on_deadline| {
        let Change::Zero { target, zero, .. } = zero_by("node/node-1", by, expires, force) else { unreachable!() };
        let request = DrainRequest { operation: format!("op-{by}"), on_deadline, ..DrainRequest::default() };
        Change::Zero { target, zero, drain: Some(request), force }
    };
    for (expires, by, then, force, whose, until) in [
        (short, "me", None, false, "me", short),
        // What is left out of a drain that lasts stays as it is.
        (short, "you", None, false, "me", short),
        (short, "", None, false, "me", short),
        (short, "you", long, false, "you", long),
        (long, "you", short, false, "me", long),
        (None, "you", short, false, "me", None),
        (short, "you", None, true, "you", None),
    ] {
        let mut world = World::new();
        world.put("shop", shop());
        world.apply(&drain("me", expires, false, None));
        world.apply(&drain(by, then, force, None));
        let case = format!("{expires:?}, then {by} {then:?} {force}");
        let held = world.state.node("node-1").unwrap().zero.clone().unwrap();
        assert_eq!((held.owner.as_str(), held.expires), (whose, until), "{case}");
        let lasting = held.lasting_drain().unwrap();
        assert_eq!(
            (lasting.operation.as_str(), lasting.owner.as_str()),
            ("op-me", if force { by } else { "me" }),
            "{case}"
        );
        // However often it is said, and whoever holds the zero longer: the drain is that of who began it.
        let refused = world.try_apply(&drain("you", None, false, Some(OnDeadline::Close)));
        assert_eq!(
            refused.map_err(|refusal| (refusal.kind, refusal.field)),
            if force { Ok(Outcome::Replaced) } else { Err((RefusalKind::Conflict, Some("onDeadline".into()))) },
            "{case}"
        );
        world.apply(&drain(if force { "you" } else { "me" }, None, false, Some(OnDeadline::Close)));
    }
    // Over a zero it is a drain of its own, which holds for as long as that one wants.
    let mut world = World::new();
    world.put("shop", shop());
    world.apply(&zero_by("node/node-1", "me", short, false));
    world.apply(&drain("you", None, false, Some(OnDeadline::Close)));
    let held = world.state.node("node-1").unwrap().zero.clone().unwrap();
    assert_eq!((held.owner.as_str(), held.expires, held.lasting_drain().unwrap().owner.as_str()), ("you", None, "you"));
}

#[test]
fn drains_end_together_and_only_if_they_last() {
    let mut world = World::new();
    world.put("shop", shop());
    let drained = ["node/node-1", "shop/n1", "shop/n2"];
    for text in drained {
        let Change::Zero { target, zero, .. } = force(text) else { unreachable!() };
        let request = DrainRequest { operation: format!("op {text}"), ..DrainRequest::default() };
        world.apply(&Change::Zero { target, zero, drain: Some(request), force: true });
    }
    let ending = |text: &str, operation: &str| Ending {
        target: target(text),
        operation: format!("op {operation}"),
        end: DrainEnd::Drained,
    };
    let ends = vec![
        ending("node/node-1", "node/node-1"),
        ending("shop/n1", "shop/n1"),
        ending("shop/n2", "another"),
        ending("shop/n3", "shop/n3"),
        ending("gone/n1", "gone/n1"),
    ];
    assert_eq!(world.apply(&Change::EndDrains { ends: ends.clone() }), Outcome::Replaced);
    assert_eq!((world.touched.services.len(), world.touched.nodes.len()), (1, 1));
    let lasts = drained.map(|text| world.state.zero(&target(text)).unwrap().lasting_drain().is_some());
    assert_eq!(lasts, [false, false, true]);
    assert_eq!(world.apply(&Change::EndDrains { ends }), Outcome::Unchanged);
}

#[test]
fn a_node_zero_holds_for_backends_that_come_later() {
    let mut world = World::new();
    world.put("shop", shop());
    world.apply(&zero("node/node-1"));
    assert_eq!(world.open("shop"), ["n2"]);
    assert!(world.touched.services.is_empty(), "one node, whatever the number of services");
    assert_eq!(world.touched.nodes.len(), 1);
    world.apply(&delete("shop"));
    world.put("shop", shop());
    assert_eq!(world.open("shop"), ["n2"]);
    // Both overlays must go before the backend is open again.
    world.apply(&zero("shop/n1"));
    world.apply(&restore("node/node-1"));
    assert_eq!(world.open("shop"), ["n2"]);
    world.apply(&restore("shop/n1"));
    assert_eq!(world.open("shop"), ["n1", "n2"]);
}

#[test]
fn zeros_end_in_order() {
    let mut world = World::new();
    world.put("shop", shop());
    world.apply(&zero_by("shop/n1", "a", Some(at(30)), true));
    world.apply(&zero_by("node/node-2", "b", Some(at(10)), true));
    assert_eq!(world.state.next_expiry(), Some(at(10)));
    assert_eq!(world.state.expired(at(9)), []);
    assert_eq!(world.state.expired(at(10)), [target("node/node-2")]);
    assert_eq!(world.state.expired(at(99)), [target("node/node-2"), target("shop/n1")]);
    world.apply(&zero_by("node/node-2", "b", None, true));
    assert_eq!(world.state.expired(at(99)), [target("shop/n1")]);
    world.apply(&delete("shop"));
    assert_eq!(world.state.next_expiry(), None);
}

/// A service with backends `a`, `b`, ... of these weights, on nodes of the same names.
fn weighted(index: u8, percent: u8, weights: &[u32]) -> Change {
    let backends = weights.iter().zip('a'..).map(|(weight, name)| {
        let address = format!("10.0.{index}.{}:80", u32::from(name) - u32::from('a') + 1);
        json!({"name": name, "node": name, "address": address, "weight": weight})
    });
    let backends: Vec<_> = backends.collect();
    let spec = json!({"frontends": [format!("10.96.0.{index}:80")], "minReadyPercent": percent, "backends": backends});
    put(&format!("s{index}"), spec)
}

#[test]
fn capacity_is_guarded() {
    for (percent, weights, zeroed, then, allowed) in [
        // The last open backend.
        (0, &[100][..], &[][..], "a", false),
        (0, &[100, 100], &[], "a", true),
        (0, &[100, 100], &["b"], "a", false),
        (0, &[100, 0], &[], "a", false),
        // What is closed anyway may be zeroed.
        (0, &[100, 0], &["a"], "b", true),
        (100, &[0, 0], &[], "a", true),
        // Exactly the percentage is enough.
        (50, &[100, 100], &[], "a", true),
        (51, &[100, 100], &[], "a", false),
        (50, &[100, 100, 100], &["a"], "b", false),
        (34, &[100, 100, 100], &["a"], "b", false),
        (33, &[100, 100, 100], &["a"], "b", true),
        (80, &[1, 9], &[], "a", true),
        (80, &[1, 9], &[], "b", false),
        (100, &[1, 9], &[], "a", false),
    ] {
        for kind in ["node/", "s1/"] {
            let mut world = World::new();
            world.apply(&weighted(1, percent, weights));
            for target in zeroed {
                world.apply(&force(&format!("{kind}{target}")));
            }
            let (change, forced) = (zero(&format!("{kind}{then}")), force(&format!("{kind}{then}")));
            let outcome = world.try_apply(&change);
            let case = format!("{percent} % of {weights:?} without {zeroed:?}: zero {kind}{then}");
            match outcome {
                Ok(_) => assert!(allowed, "{case}"),
                Err(refusal) => {
                    assert!(!allowed, "{case}: {refusal}");
                    assert_eq!((refusal.kind, refusal.services), (RefusalKind::Conflict, vec![name("s1")]));
                    assert_eq!(world.apply(&forced), Outcome::Replaced);
                    // Once it is done, to repeat it makes nothing worse.
                    assert_eq!(world.apply(&change), Outcome::Unchanged);
                }
            }
        }
    }
}

#[test]
fn the_guard_names_those_that_this_zero_makes_worse() {
    let mut world = World::new();
    world.apply(&weighted(1, 0, &[100]));
    world.apply(&weighted(2, 0, &[100, 100]));
    world.apply(&weighted(3, 60, &[100, 100]));
    world.apply(&weighted(4, 100, &[0, 100]));
    world.apply(&weighted(5, 0, &[100]));
    world.apply(&force("s5/a"));
    let refusal = world.try_apply(&zero("node/a")).unwrap_err();
    assert_eq!(refusal.services, [name("s1"), name("s3")]);
    assert!(
        refusal.message.contains("would leave s1 (nothing open), s3 (50 % open, 60 % wanted) without enough"),
        "{refusal}"
    );
    // A patch of a weight is no zero.
    assert_eq!(world.apply(&patch_backend("s1", "a", json!({"weight": 0}))), Outcome::Replaced);
}

#[test]
fn capacity_is_counted_by_shares_over_groups() {
    let mut world = World::new();
    // By weights the canary would be nine tenths of the service; it gets 5 % of the connections.
    let spec = json!({
        "frontends": ["10.96.0.10:80"], "minReadyPercent": 50,
        "groups": [{"name": "stable", "weight": 95}, {"name": "canary", "weight": 5}, {"name": "empty", "weight": 900}],
        "backends": [
            {"name": "n1", "address": "10.0.0.1:80", "group": "stable", "weight": 1, "node": "a"},
            {"name": "n2", "address": "10.0.0.2:80", "group": "stable", "weight": 1, "node": "b"},
            {"name": "c1", "address": "10.0.0.3:80", "group": "canary", "weight": 18, "node": "c"},
        ],
    });
    world.put("shop", spec);
    assert_eq!(world.apply(&zero("node/c")), Outcome::Replaced);
    world.apply(&restore("node/c"));
    assert_eq!(world.apply(&zero("shop/n1")), Outcome::Replaced);
    let refusal = world.try_apply(&zero("node/b")).unwrap_err();
    assert!(refusal.message.contains("shop (5 % open, 50 % wanted)"), "{refusal}");
    let refusal = world.try_apply(&zero("shop/c1")).unwrap_err();
    assert!(refusal.message.contains("shop (47.5 % open, 50 % wanted)"), "{refusal}");
}

#[test]
fn a_document_is_missed_for_what_it_closes() {
    let three = |percent, weights: [u32; 3], names: [&str; 3]| {
        let backends = weights.iter().zip(names).filter(|(_, name)| !name.is_empty()).map(|(weight, name)| {
            json!({"name": name, "address": format!("10.0.0.{}:80", name.as_bytes()[0] - b'a' + 1), "weight": weight})
        });
        let backends: Vec<_> = backends.collect();
        put("shop", json!({"frontends": ["10.96.0.10:80"], "minReadyPercent": percent, "backends": backends}))
    };
    let all = ["a", "b", "c"];
    for (percent, weights, names, at_least_one, wanted) in [
        // A weight of 0 is as a zero; other weights close nothing.
        (60, [0, 2, 2], all, false, None),
        (70, [0, 2, 2], all, false, Some("shop (66.66 % open, 70 % wanted)")),
        (100, [1, 2, 2], all, false, None),
        // So is a backend that is taken out; one that comes in its place counts as much.
        (60, [2, 2, 2], ["a", "", ""], false, Some("shop (33.33 % open, 60 % wanted)")),
        (100, [2, 2, 2], ["a", "b", "d"], false, None),
        (100, [2, 2, 2], ["d", "e", "f"], false, None),
        // Where nothing is asked for, a document may close all, and one weight may not.
        (0, [0, 0, 0], all, false, None),
        (0, [0, 0, 0], all, true, Some("shop (nothing open)")),
    ] {
        let mut world = World::new();
        world.apply(&three(0, [2, 2, 2], all));
        let after = world.state.apply(&three(percent, weights, names), at(0)).unwrap();
        let short = world.state.short_after(&after.state, &after.touched, at_least_one);
        let short: Vec<_> = short.iter().map(ToString::to_string).collect();
        assert_eq!(short, Vec::from_iter(wanted), "{percent} % {weights:?} {names:?}");
    }
}

#[test]
fn a_group_without_weight_is_no_capacity() {
    let mut world = World::new();
    let spec = |canary: u32| {
        json!({
            "frontends": ["10.96.0.10:80"],
            "groups": [{"name": "stable", "weight": 95}, {"name": "canary", "weight": canary}],
            "backends": [
                {"name": "n1", "address": "10.0.0.1:80", "group": "stable", "node": "a"},
                {"name": "n2", "address": "10.0.0.2:80", "group": "canary", "node": "b"},
            ],
        })
    };
    world.put("shop", spec(0));
    for target in ["shop/n1", "node/a"] {
        assert_eq!(world.try_apply(&zero(target)).unwrap_err().kind, RefusalKind::Conflict, "{target}");
        assert_eq!(world.state.apply(&zero("shop/n2"), at(0)).unwrap().outcome, Outcome::Replaced);
    }
    world.put("shop", spec(5));
    world.apply(&zero("node/a"));
    assert_eq!(world.open("shop"), ["n2"]);
}

#[test]
fn owner_and_reason_are_bounded() {
    let mut world = World::new();
    world.put("shop", shop());
    let change = zero_by("shop/n1", &"x".repeat(300), None, false);
    assert!(world.refusal(&change).starts_with("owner: 300 bytes"), "{}", world.refusal(&change));
}
