//! Drains beside other work: a zero waits for none of it.

use tokio::sync::oneshot;

use super::*;
use crate::{
    engine::{
        client::DrainEnded,
        drains::{AHEAD, AT_ONCE},
    },
    model::{DrainEnd, DrainRequest, OnDeadline, OperationPhase, Target},
};

fn drain(target: &str) -> Change {
    let Change::Zero { target, zero, force, .. } = zero(target, true) else { unreachable!() };
    let drain = Some(DrainRequest { operation: format!("op {target}"), ..DrainRequest::default() });
    Change::Zero { target, zero, drain, force }
}

fn ended(steering: &Engine<Fake>, target: &str) -> Command {
    let target: Target = target.parse().unwrap();
    let mut operation = steering.operations.get(&format!("op {target}")).unwrap();
    operation.phase = OperationPhase::Drained;
    let drain = steering.state.zero(&target).unwrap().drain.clone().unwrap();
    Command::EndDrain {
        ended: Box::new(DrainEnded { target, drain, operation, end: DrainEnd::Drained }),
        reply: oneshot::channel().0,
    }
}

fn lasting(steering: &Engine<Fake>) -> usize {
    steering.state.zeroed().iter().filter(|(_, zero)| zero.lasting_drain().is_some()).count()
}

fn phase(steering: &Engine<Fake>, target: &str) -> OperationPhase {
    steering.operations.get(&format!("op {target}")).unwrap().phase
}

/// One service with so many backends, all of which are drained, each by itself.
fn drained(dir: &TempDir, number: usize) -> (Engine<Fake>, Vec<String>) {
    let mut steering = steering(dir, Fake { keep_history: true, ..Fake::default() });
    let names: Vec<_> = (0..number).map(|n| (format!("b{n}"), format!("10.1.{}.{}:80", n / 250, n % 250))).collect();
    let backends: Vec<_> = names.iter().map(|(name, address)| (name.as_str(), address.as_str(), "node-9", 1)).collect();
    run(&mut steering, named("big", &["10.96.0.9:80"], &backends)).unwrap();
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    let targets: Vec<_> = names.iter().map(|(name, _)| format!("big/{name}")).collect();
    for target in &targets {
        run(&mut steering, drain(target)).unwrap();
    }
    assert_eq!((lasting(&steering), steering.machine.draining.len()), (number, number));
    steering.machine.history.clear();
    (steering, targets)
}

/// One request, or what waits for none.
fn turn(steering: &mut Engine<Fake>, commands: &mpsc::Receiver<Command>) {
    assert!(steering.turn(commands).is_continue());
}

/// Whether a write ends the closing of connections.
fn ends_draining(write: &MapOp) -> bool {
    matches!(write, MapOp::SetDraining { draining: None, .. })
}

fn written(steering: &mut Engine<Fake>) -> Vec<MapOp> {
    std::mem::take(&mut steering.machine.history).into_iter().map(|tables| tables.op).collect()
}

#[test]
fn a_zero_does_not_wait_for_the_ends_that_came_before_it() {
    const DRAINS: usize = 200;
    const { assert!(DRAINS < AT_ONCE) };
    let dir = TempDir::new().unwrap();
    let (mut steering, targets) = drained(&dir, DRAINS);
    let (sender, commands) = mpsc::channel();
    for target in &targets {
        sender.send(ended(&steering, target)).unwrap();
        // It may be told twice, and how far it had come is told before.
        sender.send(ended(&steering, target)).unwrap();
        let operation = steering.operations.get(&format!("op {target}")).unwrap();
        sender.send(Command::KeepOperation(Box::new(operation))).unwrap();
    }
    let (reply, mut answer) = oneshot::channel();
    let options = Options::now();
    sender.send(Command::Change { changes: vec![zero("node/node-1", true)], options, reply }).unwrap();
    let revision = steering.state.revision();
    while answer.try_recv().is_err() {
        turn(&mut steering, &commands);
    }
    assert_eq!((steering.state.revision(), lasting(&steering)), (revision + 1, DRAINS));
    let writes = written(&mut steering);
    assert!(matches!(writes[0], MapOp::SetNode { .. }), "{writes:?}");
    assert!(!writes.iter().any(ends_draining), "{writes:?}");
    // All of them are one change, and write no table.
    turn(&mut steering, &commands);
    assert_eq!((steering.state.revision(), lasting(&steering)), (revision + 2, 0));
    let writes = written(&mut steering);
    assert!(writes.len() == DRAINS && writes.iter().all(ends_draining), "{writes:?}");
    assert!(targets.iter().all(|target| phase(&steering, target) == OperationPhase::Drained));
    // What there was to keep of them is kept with their ends.
    assert!(steering.later.is_empty() && steering.drains.is_empty());
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!((lasting(&next), phase(&next, &targets[7])), (0, OperationPhase::Drained));
}

#[test]
fn ends_are_noted_though_requests_never_cease() {
    let dir = TempDir::new().unwrap();
    let (mut steering, targets) = drained(&dir, 2);
    let (sender, commands) = mpsc::channel();
    sender.send(ended(&steering, &targets[0])).unwrap();
    for _ in 0..2 * AHEAD {
        sender.send(Command::Lost(Vec::new())).unwrap();
    }
    for _ in 0..=AHEAD {
        turn(&mut steering, &commands);
        assert_eq!(lasting(&steering), 2);
    }
    turn(&mut steering, &commands);
    assert_eq!(lasting(&steering), 1);
}

#[test]
fn the_end_of_a_drain_that_was_begun_anew_is_no_end() {
    let dir = TempDir::new().unwrap();
    let (mut steering, targets) = drained(&dir, 4);
    let (sender, commands) = mpsc::channel();
    for target in &targets {
        sender.send(ended(&steering, target)).unwrap();
    }
    run(&mut steering, restore(&targets[0])).unwrap();
    run(&mut steering, restore(&targets[1])).unwrap();
    let again = |target: &str, operation: String, on_deadline| {
        let mut again = drain(target);
        let Change::Zero { drain: Some(request), .. } = &mut again else { unreachable!() };
        (request.operation, request.on_deadline) = (operation, on_deadline);
        again
    };
    run(&mut steering, again(&targets[1], "op anew".into(), None)).unwrap();
    // On other terms: what was open at the deadline is closed then.
    let same = format!("op {}", targets[2]);
    run(&mut steering, again(&targets[2], same.clone(), Some(OnDeadline::Close))).unwrap();
    while !steering.later.is_empty() || lasting(&steering) > 2 {
        turn(&mut steering, &commands);
    }
    let phases = [0, 1, 3].map(|index| phase(&steering, &targets[index]));
    assert_eq!(phases, [OperationPhase::Cancelled, OperationPhase::Cancelled, OperationPhase::Drained]);
    assert!(steering.drains.values().eq(["op anew", &same]));
}

#[test]
fn a_zero_beside_a_drain_is_written_first_and_looks_at_nothing_else() {
    let dir = TempDir::new().unwrap();
    let (mut steering, _) = drained(&dir, 50);
    for target in ["node/node-1", "node/node-9", "shop/b", "big/b7"] {
        let change = zero(target, true);
        let before = steering.state.clone();
        steering.change(&[change], Options::now()).unwrap();
        let writes = written(&mut steering);
        match &writes[..] {
            // Zeroed already.
            [] => assert_eq!(target, "big/b7"),
            [MapOp::SetNode { closed, .. } | MapOp::CloseBackend { closed, .. }, rest @ ..] => {
                assert!(*closed != 0 && !rest.iter().any(|op| matches!(op, MapOp::SetDraining { .. })), "{writes:?}");
            }
            _ => panic!("{target}: {writes:?}"),
        }
        // The same with a drain: the zero first, and no connection is closed before.
        let touched = before.apply(&zero(target, true), jiff::Timestamp::now()).unwrap().touched;
        assert!(
            crate::plan::draining::concerned(&before, &steering.state, &touched.services, &touched.nodes).is_empty(),
            "{target}"
        );
        while !steering.stale().is_empty() {
            steering.work_at_leisure();
        }
        written(&mut steering);
    }
    run(&mut steering, drain("shop/a")).unwrap();
    let writes = written(&mut steering);
    assert!(
        matches!(&writes[..], [MapOp::CloseBackend { .. }, MapOp::SetDraining { draining: Some(_), .. }, ..]),
        "{writes:?}"
    );
    // And the other way round when it ends: nothing is closed any more once it is open.
    run(&mut steering, restore("node/node-1")).unwrap();
    written(&mut steering);
    run(&mut steering, restore("shop/a")).unwrap();
    let writes = written(&mut steering);
    assert!(ends_draining(&writes[0]) && writes[1..].iter().all(|op| !ends_draining(op)), "{writes:?}");
}

#[test]
fn a_drain_that_fails_lets_no_connection_be_closed() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    let both = ("c", C.1, A.2, 10);
    run(&mut steering, service(&[FRONTEND], &[A, B, both])).unwrap();
    for failing in 0..3 {
        // The node, and then two backends of which connections may be closed.
        steering.machine.fail_at = Some(steering.machine.done + failing);
        assert!(run(&mut steering, drain("node/node-1")).is_err());
        assert!(steering.machine.draining.is_empty() && steering.machine.fail_at.is_none(), "{failing}");
        assert!(!steering.state.is_zeroed(&"node/node-1".parse().unwrap()));
        steering.recover();
    }
    run(&mut steering, drain("node/node-1")).unwrap();
    assert_eq!(steering.machine.draining.len(), 2);
}

#[test]
fn what_documents_say_of_a_drain_that_lasts_goes_to_the_kernel() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, drain("node/node-1")).unwrap();
    let quiet = |steering: &Engine<Fake>| {
        let service = steering.state.service("shop").unwrap();
        let draining = |id: &u32| steering.machine.draining.get(id).map(|draining| draining.quiet);
        service.backends.iter().map(|backend| draining(&backend.id.0)).collect::<Vec<_>>()
    };
    assert_eq!(quiet(&steering), [Some(2000), None]);
    let backend = |(name, address, _, _): (&str, &str, &str, u32), node: &str| serde_json::json!({"name": name, "address": address, "node": node});
    for (spec, expected) in [
        (serde_json::json!({"idleClose": "5s"}), vec![Some(5000), None]),
        (serde_json::json!({"protocol": "stream"}), vec![Some(0), None]),
        (serde_json::json!({"protocol": null, "idleClose": null}), vec![Some(2000), None]),
        // A port that is usually a database's stands for sessions, unless the service says otherwise.
        (serde_json::json!({"frontends": ["10.96.0.1:5432"]}), vec![Some(0), None]),
        (serde_json::json!({"protocol": "request"}), vec![Some(2000), None]),
        (serde_json::json!({"protocol": null, "frontends": [FRONTEND]}), vec![Some(2000), None]),
        // Backends come to the node, go to another place in the list, and go to another node.
        (serde_json::json!({"backends": [backend(A, A.2), backend(B, A.2)]}), vec![Some(2000), Some(2000)]),
        (
            serde_json::json!({"backends": [backend(C, C.2), backend(A, A.2), backend(B, B.2)]}),
            vec![None, Some(2000), None],
        ),
        (serde_json::json!({"backends": [backend(A, B.2), backend(C, C.2)]}), vec![None, None]),
    ] {
        let patch = serde_json::json!({"spec": spec});
        let change = Change::PatchService { service: Name::new("shop").unwrap(), patch, if_match: None };
        run(&mut steering, change).unwrap();
        assert_eq!(quiet(&steering), expected, "{spec}");
    }
    assert!(steering.machine.draining.is_empty());
}

#[test]
fn the_end_of_a_drain_closes_its_target_to_the_flows_that_stayed() {
    use sluice_common::tables::{CLOSED_FLOWS, CLOSED_ZERO};
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    run(&mut steering, service(&["10.96.0.1:443/udp"], &[A, B, C])).unwrap();
    let patch = serde_json::json!({"spec": {"protocol": "stream", "flowTimeout": "5m"}});
    run(&mut steering, Change::PatchService { service: Name::new("shop").unwrap(), patch, if_match: None }).unwrap();
    let held: Vec<_> = steering.machine.backends.values().map(|held| (held.keeps_flows, held.flow_timeout)).collect();
    assert_eq!(held, [(1, 300_000); 3], "a word of each backend");
    for target in ["node/node-1", "shop/b"] {
        run(&mut steering, drain(target)).unwrap();
        steering.machine.history.clear();
        let (sender, commands) = mpsc::channel();
        sender.send(ended(&steering, target)).unwrap();
        while !steering.drains.is_empty() {
            turn(&mut steering, &commands);
        }
        let closed = |write: &MapOp| match write {
            MapOp::SetNode { closed, .. } | MapOp::CloseBackend { closed, .. } => Some(*closed),
            _ => None,
        };
        let writes = written(&mut steering);
        assert_eq!(writes.iter().filter_map(closed).collect::<Vec<_>>(), [CLOSED_ZERO | CLOSED_FLOWS], "{writes:?}");
        assert!(
            !writes.iter().any(|write| matches!(write, MapOp::WriteTable { .. } | MapOp::Flip { .. })),
            "{writes:?}"
        );
        // It is over for whoever comes next, until it is restored.
        run(&mut steering, zero(target, true)).unwrap();
        assert!(written(&mut steering).iter().all(|write| closed(write).is_none()), "{target}");
        run(&mut steering, restore(target)).unwrap();
        run(&mut steering, zero(target, true)).unwrap();
        let writes = written(&mut steering);
        assert_eq!(writes.iter().filter_map(closed).next_back(), Some(CLOSED_ZERO), "{writes:?}");
        run(&mut steering, restore(target)).unwrap();
    }
}
