//! Several changes as one, and changes of a part of a service.

use super::*;
use crate::model::Frontend;

#[test]
fn changes_together_are_judged_by_what_comes_of_them() {
    let of = |frontend: u8, backend: u8| {
        let backends = json!([{"name": "n", "address": format!("10.0.0.{backend}:80")}]);
        json!({"frontends": [format!("10.96.0.{frontend}:80")], "backends": backends})
    };
    let loops = |frontend: u8, backend: u8| {
        let backends = json!([{"name": "n", "address": format!("10.96.0.{backend}:80")}]);
        json!({"frontends": [format!("10.96.0.{frontend}:80")], "backends": backends})
    };
    let mut world = World::new();
    world.put("a", of(1, 1));
    world.put("b", of(2, 2));
    let together = |world: &World, changes: &[Change]| {
        let changes: Vec<_> = changes.iter().collect();
        let places = |refused: Vec<(usize, Refusal)>| {
            refused.into_iter().map(|(place, refusal)| format!("{place}: {refusal}")).collect::<Vec<_>>()
        };
        world.state.apply_together(&changes, at(0)).map_err(places)
    };
    let owners = |state: &State| {
        let owner = |frontend: u8| {
            let frontend: Frontend = format!("10.96.0.{frontend}:80").parse().unwrap();
            state.frontend(&frontend).and_then(|id| state.service_by_id(id)).map(|service| service.name.to_string())
        };
        [1, 2, 3].map(|frontend| owner(frontend).unwrap_or_default())
    };
    // Exchanged, passed on, and taken over by another name.
    let applied = together(&world, &[put("a", of(2, 1)), put("b", of(1, 2))]).unwrap();
    assert_eq!(owners(&applied.state), ["b", "a", ""]);
    assert_eq!(applied.state.revision(), world.state.revision() + 1);
    let applied = together(&world, &[put("a", of(2, 1)), put("b", of(3, 2))]).unwrap();
    assert_eq!(owners(&applied.state), ["", "a", "b"]);
    for changes in [[put("c", of(1, 1)), delete("a")], [delete("a"), put("c", of(1, 1))]] {
        assert_eq!(owners(&together(&world, &changes).unwrap().state), ["c", "b", ""]);
    }
    // What had the address of a backend may become a frontend, and the other way round.
    let changes = [put("a", loops(3, 1)), put("b", of(2, 2))];
    assert!(together(&world, &changes).is_ok());
    assert!(together(&world, &[put("a", loops(1, 2)), put("b", loops(3, 4))]).is_ok());
    // What comes of it is judged all the same, and whoever takes what another keeps is named.
    let refused = together(&world, &[put("b", of(2, 2)), put("c", of(2, 3))]).unwrap_err();
    assert_eq!(refused, ["1: spec.frontends[0]: 10.96.0.2:80 is a frontend of b already: remove it there first"]);
    let refused = together(&world, &[put("a", of(3, 1)), put("c", of(3, 3)), put("d", of(2, 9))]).unwrap_err();
    assert_eq!(refused.len(), 2, "{refused:?}");
    let refused = together(&world, &[put("b", loops(3, 1))]).unwrap_err();
    assert!(refused[0].starts_with("0: spec.backends[0].address") && refused[0].ends_with("would loop"), "{refused:?}");
    assert_eq!(owners(&world.state), ["a", "b", ""]);
}

#[test]
fn a_group_is_patched_alone() {
    let mut world = World::new();
    let of = |service: &str, group: &str, patch: Value| Change::PatchGroup {
        service: name(service),
        group: name(group),
        patch,
        if_match: None,
    };
    let spec = json!({
        "frontends": ["10.96.0.10:80"], "groups": [{"name": "stable", "weight": 95}, {"name": "canary", "weight": 5}],
        "backends": [],
    });
    world.put("shop", spec);
    assert_eq!(world.apply(&of("shop", "canary", json!({"weight": 10}))), Outcome::Replaced);
    let weights: Vec<_> = world.service("shop").groups.iter().map(|group| group.weight).collect();
    assert_eq!((weights, world.service("shop").generation), (vec![95, 10], 2));
    assert_eq!(world.apply(&of("shop", "canary", json!({"weight": 10}))), Outcome::Unchanged);
    world.put("plain", json!({"frontends": ["10.96.0.11:80"], "backends": []}));
    for (change, why) in [
        (of("shop", "none", json!({"weight": 1})), "service shop has no group none"),
        (of("plain", "default", json!({"weight": 1})), "service plain has no group default"),
        (of("none", "canary", json!({"weight": 1})), "there is no service none"),
        (of("shop", "canary", json!({"weight": -1})), "weight: a weight is a whole number"),
        (of("shop", "canary", json!({"name": "x"})), "a patch cannot rename canary"),
        (of("shop", "canary", json!({"share": 5})), "unknown field"),
    ] {
        let refusal = world.refusal(&change);
        assert!(refusal.contains(why), "{refusal}");
    }
}
