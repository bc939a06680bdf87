//! The engine on tables in memory: what is in force between any two writes, after a fault at any of them, and
//! after a restart.

mod attachment;
mod brake;
mod disk;
mod drains;
mod dry_run;
mod faults;
mod health;
mod shares;
mod takeover;

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
    time::Instant,
};

use sluice_common::tables::{Endpoint, TCP};
use tempfile::TempDir;

use super::event_loop::{Engine, EngineParts};
use crate::{
    engine::client::{ChangeError, Command, Done, Options},
    model::{Change, Limits, Name, Origin, Zero, parse},
    plan::{DataPlane, MapOp, Retired, fake::Fake, regions::Region},
    settings::Brake,
    source::store::Store,
    telemetry::Instruments,
    view::events::EventLog,
};

const LIMITS: Limits = Limits { services: 64, backends: 256, nodes: 64, frontends: 256 };
const SLOTS: u32 = 16384;

fn steering(dir: &TempDir, machine: Fake) -> Engine<Fake> {
    let mut steering = begin(dir, machine);
    steering.begin(Vec::new()).unwrap();
    steering
}

fn begin(dir: &TempDir, machine: Fake) -> Engine<Fake> {
    let (store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let (commands, _) = mpsc::channel();
    let beginning = EngineParts {
        state,
        machine,
        store,
        events: Arc::new(EventLog::default()),
        operations: Arc::default(),
        instruments: Arc::new(Instruments::new().unwrap()),
        begun: std::sync::mpsc::channel().0,
        commands,
        slots: SLOTS,
        absent: Vec::new(),
        brake: Brake { shrink_limit: 100, ..Brake::default() },
    };
    Engine::new(beginning).0
}

fn service(frontends: &[&str], backends: &[(&str, &str, &str, u32)]) -> Change {
    named("shop", frontends, backends)
}

fn named(name: &str, frontends: &[&str], backends: &[(&str, &str, &str, u32)]) -> Change {
    let backends: Vec<_> = backends
        .iter()
        .map(|(name, address, node, weight)| {
            serde_json::json!({"name": name, "address": address, "node": node, "weight": weight})
        })
        .collect();
    let document = serde_json::json!({
        "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": name},
        "spec": {"frontends": frontends, "backends": backends}
    });
    let document = parse::service(document.to_string().as_bytes(), parse::DocumentFormat::Json).unwrap();
    Change::PutService { document: Box::new(document), origin: Origin::Api, if_match: None }
}

fn zero(target: &str, force: bool) -> Change {
    let zero =
        Zero { owner: "test".into(), reason: String::new(), since: jiff::Timestamp::now(), expires: None, drain: None };
    Change::Zero { target: target.parse().unwrap(), zero, drain: None, force }
}

fn restore(target: &str) -> Change {
    Change::Restore { target: target.parse().unwrap() }
}

fn delete() -> Change {
    Change::DeleteService { service: Name::new("shop").unwrap(), if_match: None }
}

fn run(steering: &mut Engine<Fake>, change: Change) -> Result<Done, ChangeError> {
    let done = steering.change(&[change], Options::now());
    while !steering.stale().is_empty() {
        steering.work_at_leisure();
    }
    done
}

fn at(address: &str) -> Endpoint {
    Endpoint::new(address.parse().unwrap(), TCP)
}

/// Every answer that a caller of `frontend` can get.
fn answers(machine: &Fake, frontend: &str) -> BTreeSet<Option<Option<String>>> {
    let now = machine.now();
    (0..200).map(|draw| now.connect(&at(frontend), draw)).collect()
}

fn to(addresses: &[&str]) -> BTreeSet<Option<Option<String>>> {
    addresses.iter().map(|address| Some(Some((*address).to_owned()))).collect()
}

const FRONTEND: &str = "10.96.0.1:80";
const A: (&str, &str, &str, u32) = ("a", "10.0.0.1:80", "node-1", 100);
const B: (&str, &str, &str, u32) = ("b", "10.0.0.2:80", "node-2", 50);
const C: (&str, &str, &str, u32) = ("c", "10.0.0.3:80", "node-3", 10);

/// Each step changes the tables from one set of answers to another.
fn steps() -> Vec<(Change, BTreeSet<Option<Option<String>>>)> {
    let moved = ("a", "10.0.0.9:80", "node-1", 100);
    let idle = ("c", "10.0.0.3:80", "node-3", 0);
    vec![
        (service(&[FRONTEND], &[A, B]), to(&[A.1, B.1])),
        (service(&[FRONTEND, "10.96.0.2:80"], &[A, B, C]), to(&[A.1, B.1, C.1])),
        (zero("node/node-1", false), to(&[B.1, C.1])),
        (zero("shop/b", false), to(&[C.1])),
        (zero("node/node-3", true), [Some(None)].into()),
        (restore("node/node-1"), to(&[A.1])),
        (restore("node/node-3"), to(&[A.1, C.1])),
        (restore("shop/b"), to(&[A.1, B.1, C.1])),
        (service(&[FRONTEND], &[moved, B, idle]), to(&[moved.1, B.1])),
        (service(&[FRONTEND], &[C]), to(&[C.1])),
        (delete(), [None].into()),
        (service(&[FRONTEND], &[A]), to(&[A.1])),
    ]
}

#[test]
fn every_prefix_of_a_change_gives_an_old_or_a_new_answer() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    let mut before: BTreeSet<_> = [None].into();
    for (change, after) in steps() {
        let name = format!("{change:?}");
        steering.machine.history.clear();
        run(&mut steering, change).unwrap();
        let history = std::mem::take(&mut steering.machine.history);
        assert!(!history.is_empty(), "{name}");
        for tables in &history {
            for draw in 0..200 {
                let answer = tables.connect(&at(FRONTEND), draw);
                assert!(
                    before.contains(&answer) || after.contains(&answer),
                    "{answer:?} after {} of {name}",
                    tables.op
                );
            }
        }
        assert_eq!(answers(&steering.machine, FRONTEND), after, "{name}");
        before = after;
    }
}

#[test]
fn a_fault_at_any_write_changes_nothing_and_is_overcome() {
    for fail_at in 0..60 {
        let dir = TempDir::new().unwrap();
        let mut steering = steering(&dir, Fake::default());
        steering.machine.fail_at = Some(fail_at);
        let mut before: BTreeSet<_> = [None].into();
        let mut faults = 0;
        for (change, after) in steps() {
            let held = steering.state.revision();
            match run(&mut steering, change.clone()) {
                Ok(_) => {}
                Err(ChangeError::Failed(_)) => {
                    faults += 1;
                    assert_eq!(answers(&steering.machine, FRONTEND), before, "{fail_at}: {change:?}");
                    assert_eq!(steering.state.revision(), held);
                    run(&mut steering, change.clone()).unwrap();
                }
                Err(other) => panic!("{other}"),
            }
            steering.recover();
            assert_eq!(answers(&steering.machine, FRONTEND), after, "{fail_at}: {change:?}");
            before = after;
        }
        assert!(faults <= 1);
        assert!(steering.machine.fail_at.is_none() || steering.machine.done <= fail_at);
    }
}

#[test]
fn a_restart_at_any_write_leaves_a_state_that_the_next_agent_completes() {
    let dir = TempDir::new().unwrap();
    let mut tables = Fake { keep_history: true, ..Fake::default() };
    for (change, after) in steps() {
        let mut first = steering(&dir, tables.clone());
        first.machine.history.clear();
        run(&mut first, change.clone()).unwrap();
        tables = first.machine.clone();
        drop(first);
        let second = steering(&dir, tables.clone());
        assert_eq!(answers(&second.machine, FRONTEND), after, "{change:?}");
    }
}

#[test]
fn a_restart_writes_nothing_when_nothing_has_changed() {
    let dir = TempDir::new().unwrap();
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut first, zero("node/node-1", false)).unwrap();
    let tables = first.machine.clone();
    drop(first);
    let second = steering(&dir, tables.clone());
    assert_eq!(second.machine.done, tables.done);
}

#[test]
fn a_table_that_was_left_is_overwritten_only_once_it_is_quiet() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    let id = steering.state.service("shop").unwrap().id.0;
    let left = steering.machine.services[&id];
    run(&mut steering, service(&[FRONTEND], &[A, C])).unwrap();
    // Everything is read again, as after a fault, while programs may still look at what was left.
    steering.recover();
    let new = |number: u8| {
        let (frontend, address) = (format!("10.97.0.{number}:80"), format!("10.1.0.{number}:80"));
        named(&format!("s{number}"), &[&frontend], &[("a", &address, "node-1", 100), ("b", B.1, "node-2", 50)])
    };
    for number in 1..4 {
        run(&mut steering, new(number)).unwrap();
        assert!(steering.machine.services.values().all(|table| table.base() != left.base()));
    }
    // It comes back once, however often that is said.
    let retired = || Retired { regions: vec![Region::of(left.base(), 1)], ..Retired::default() };
    steering.obey(Command::GracePeriodElapsed(retired()));
    run(&mut steering, new(4)).unwrap();
    steering.obey(Command::GracePeriodElapsed(retired()));
    for number in 5..8 {
        run(&mut steering, new(number)).unwrap();
    }
    let mut bases: Vec<_> = steering.machine.services.values().map(|table| table.base()).collect();
    bases.sort_unstable();
    assert!(bases.contains(&left.base()));
    assert!(bases.windows(2).all(|pair| pair[0] + 16 <= pair[1]), "{bases:?}");
}

#[test]
fn a_zero_needs_no_room_for_a_table() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.slots = 16;
    steering.reconcile().unwrap();
    run(&mut steering, zero("shop/a", false)).unwrap();
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
    steering.recover();
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
}

#[test]
fn a_zero_is_one_write_and_its_tables_follow() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.machine.history.clear();
    let done = steering.change(&[zero("node/node-1", false)], Options::now());
    done.unwrap();
    let writes: Vec<_> = steering.machine.history.iter().map(|tables| tables.op.clone()).collect();
    assert!(matches!(writes[..], [MapOp::SetNode { .. }]), "{writes:?}");
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
    assert!(!steering.stale().is_empty());
}

#[test]
fn a_service_without_a_weight_gets_an_explicit_empty_table() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    let nothing = [("a", A.1, A.2, 0), ("b", B.1, B.2, 0)];
    run(&mut steering, service(&[FRONTEND], &nothing)).unwrap();
    assert_eq!(answers(&steering.machine, FRONTEND), [Some(None)].into());
    let id = steering.state.service("shop").unwrap().id;
    let table = steering.machine.services[&id.0];
    assert!(table.present() && table.length() == 0);
}

#[test]
fn full_slots_refuse_the_change_and_keep_the_old_table() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.slots = 64;
    steering.reconcile().unwrap();
    let odd = [("a", A.1, A.2, 997), ("b", B.1, B.2, 3)];
    let error = run(&mut steering, service(&[FRONTEND], &odd)).unwrap_err();
    assert!(error.to_string().contains("--max-slots"), "{error}");
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1, B.1]));
}

#[test]
fn somebody_serves_between_any_two_writes_while_weights_change_places() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    let with = |a: u32, b: u32| service(&[FRONTEND], &[("a", A.1, A.2, a), ("b", B.1, B.2, b)]);
    run(&mut steering, with(100, 0)).unwrap();
    for change in [with(0, 100), with(100, 0)] {
        steering.machine.history.clear();
        run(&mut steering, change).unwrap();
        for tables in &steering.machine.history {
            for draw in 0..200 {
                assert!(matches!(tables.connect(&at(FRONTEND), draw), Some(Some(_))), "{}", tables.op);
            }
        }
    }
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1]));
}

#[test]
fn the_state_before_a_change_is_the_one_at_its_turn() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    let same = || service(&[FRONTEND], &[A]);
    let [first, second] = [run(&mut steering, same()).unwrap(), run(&mut steering, same()).unwrap()];
    assert!(first.before.service("shop").is_none(), "created");
    assert!(second.before.service("shop").is_some(), "it was there, whenever it was asked for");
}
