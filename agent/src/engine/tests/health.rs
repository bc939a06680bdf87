//! What is found of backends: closed at once, opened before anything closes, saved when it can be.

use serde_json::json;

use super::*;
use crate::model::{HealthReport, HealthUpdate, Stamp, Unready};

fn watched(backends: &[(&str, &str, &str, u32)]) -> Change {
    let Change::PutService { mut document, origin, if_match } = service(&[FRONTEND], backends) else { unreachable!() };
    document.spec.readiness = serde_json::from_value(json!({"kind": "tcp"})).unwrap();
    Change::PutService { document, origin, if_match }
}

fn found(steering: &Engine<Fake>, backend: &str, ready: bool) -> HealthUpdate {
    let service = steering.state.service("shop").unwrap();
    let backend = service.backends.iter().find(|held| held.name == *backend).unwrap();
    let unready =
        Unready { since: Stamp::NEVER, starting: false, asked: None, message: "connection refused".to_owned() };
    HealthUpdate {
        backend: backend.id,
        report: HealthReport::Probe { reason: (!ready).then_some(unready), asked: None },
    }
}

fn find(steering: &mut Engine<Fake>, backends: &[(&str, bool)]) {
    let updates = backends.iter().map(|(backend, ready)| found(steering, backend, *ready)).collect();
    steering.update_health(updates);
}

fn leisure(steering: &mut Engine<Fake>) {
    while !steering.stale().is_empty() {
        steering.work_at_leisure();
    }
}

/// A service whose backends were found ready.
fn ready(dir: &TempDir, backends: &[(&str, &str, &str, u32)]) -> Engine<Fake> {
    let mut steering = steering(dir, Fake { keep_history: true, ..Fake::default() });
    run(&mut steering, watched(backends)).unwrap();
    let all: Vec<_> = backends.iter().map(|(name, ..)| (*name, true)).collect();
    find(&mut steering, &all);
    leisure(&mut steering);
    steering
}

#[test]
fn a_new_backend_takes_nothing_until_it_is_found_ready() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, watched(&[A, B])).unwrap();
    assert_eq!(answers(&steering.machine, FRONTEND), [Some(None)].into(), "there is no panic about the new");
    find(&mut steering, &[("b", true)]);
    leisure(&mut steering);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn what_is_restored_takes_nothing_until_a_probe_that_began_after_it_finds_it_ready() {
    let dir = TempDir::new().unwrap();
    for target in ["node/node-1", "shop/a"] {
        let mut steering = ready(&dir, &[A, B]);
        run(&mut steering, zero(target, false)).unwrap();
        // It was found ready a moment before the restore, and that arrives late.
        let late = found(&steering, "a", true);
        leisure(&mut steering);
        steering.machine.history.clear();
        run(&mut steering, Change::Restore { target: target.parse().unwrap() }).unwrap();
        steering.update_health(vec![late]);
        leisure(&mut steering);
        for tables in &steering.machine.history {
            for draw in 0..200 {
                assert_eq!(tables.connect(&at(FRONTEND), draw), Some(Some(B.1.parse().unwrap())), "{}", tables.op);
            }
        }
        let service = steering.state.service("shop").unwrap().clone();
        let probe =
            |service: &crate::model::Service| service.backends[0].health.as_ref().unwrap().probe.clone().unwrap();
        assert_eq!(probe(&service).message, "it was not probed yet since it was restored");
        assert!(
            matches!(run(&mut steering, zero("shop/b", false)), Err(ChangeError::Refused(_))),
            "nobody else serves"
        );
        // Whatever becomes of the others, nobody panics over one that has not been found ready.
        find(&mut steering, &[("b", false)]);
        leisure(&mut steering);
        assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
        find(&mut steering, &[("b", true)]);
        // A restart forgets nothing.
        let tables = steering.machine.clone();
        drop(steering);
        let mut steering = self::steering(&dir, tables);
        assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
        let backend = service.backends[0].id;
        let report = HealthReport::Probe { reason: None, asked: probe(&service).asked };
        steering.update_health(vec![HealthUpdate { backend, report }]);
        leisure(&mut steering);
        assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1, B.1]));
        run(&mut steering, Change::DeleteService { service: "shop".parse().unwrap(), if_match: None }).unwrap();
    }
}

#[test]
fn what_is_found_unready_is_closed_before_its_table_is_built() {
    let dir = TempDir::new().unwrap();
    let mut steering = ready(&dir, &[A, B]);
    steering.machine.history.clear();
    find(&mut steering, &[("a", false)]);
    let writes: Vec<_> = steering.machine.history.iter().map(|tables| tables.op.clone()).collect();
    assert!(matches!(writes[..], [MapOp::CloseBackend { .. }]), "{writes:?}");
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn somebody_serves_between_any_two_writes_while_backends_change_places() {
    let dir = TempDir::new().unwrap();
    let mut steering = ready(&dir, &[A, B]);
    find(&mut steering, &[("a", false)]);
    leisure(&mut steering);
    // One comes as the other goes; then both go, and a panic begins and ends.
    for turn in [&[("a", true), ("b", false)][..], &[("a", false)], &[("b", true)]] {
        steering.machine.history.clear();
        find(&mut steering, turn);
        leisure(&mut steering);
        for tables in &steering.machine.history {
            for draw in 0..200 {
                assert!(matches!(tables.connect(&at(FRONTEND), draw), Some(Some(_))), "{turn:?}: {}", tables.op);
            }
        }
    }
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn one_that_is_found_unready_serves_on_while_no_table_has_anybody_else() {
    let dir = TempDir::new().unwrap();
    let mut steering = ready(&dir, &[A, B]);
    find(&mut steering, &[("b", false)]);
    leisure(&mut steering);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1]));
    steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { .. }));
    find(&mut steering, &[("a", false), ("b", true)]);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1]));
    steering.machine.refuses = None;
    steering.recover();
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn when_nobody_is_healthy_all_serve_and_none_of_them_is_zeroed_unasked() {
    let dir = TempDir::new().unwrap();
    let mut steering = ready(&dir, &[A, B]);
    find(&mut steering, &[("a", false), ("b", false)]);
    leisure(&mut steering);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1, B.1]));
    run(&mut steering, zero("shop/a", false)).unwrap();
    for last in ["shop/b", "node/node-2"] {
        assert!(matches!(run(&mut steering, zero(last, false)), Err(ChangeError::Refused(_))), "{last}");
    }
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn a_group_that_gets_no_connections_calms_no_panic() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    let Change::PutService { mut document, origin, if_match } = watched(&[A, B]) else { unreachable!() };
    document.spec.groups =
        serde_json::from_value(json!([{"name": "blue", "weight": 1}, {"name": "green", "weight": 0}])).unwrap();
    for (backend, group) in document.spec.backends.iter_mut().zip(["blue", "green"]) {
        backend.group = Some(Name::new(group).unwrap());
    }
    run(&mut steering, Change::PutService { document, origin, if_match }).unwrap();
    find(&mut steering, &[("a", true), ("b", true)]);
    find(&mut steering, &[("a", false)]);
    leisure(&mut steering);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1]));
}

#[test]
fn reasons_outlive_the_agent() {
    let dir = TempDir::new().unwrap();
    let mut first = ready(&dir, &[A, B]);
    find(&mut first, &[("a", false)]);
    leisure(&mut first);
    let tables = first.machine.clone();
    drop(first);
    let second = steering(&dir, tables.clone());
    assert_eq!(answers(&second.machine, FRONTEND), to(&[B.1]));
    assert_eq!(second.machine.done, tables.done, "nothing is written again");
}
