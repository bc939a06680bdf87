//! A disk that takes no writes: what holds all the same, and is saved later.

use serde_json::json;
use tokio::sync::oneshot;

use super::{faults::drain, *};
use crate::{
    engine::client::{DrainEndAck, DrainEnded},
    model::{DrainEnd, HealthReport, HealthUpdate, OperationPhase, Stamp, Target, Unready},
    view::events::EventKind,
};

#[test]
fn a_health_update_holds_on_a_full_disk_and_is_saved_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    let Change::PutService { mut document, origin, if_match } = service(&[FRONTEND], &[A, B]) else { unreachable!() };
    document.spec.readiness = serde_json::from_value(json!({"kind": "tcp"})).unwrap();
    document.spec.warmup = serde_json::from_value(json!({})).unwrap();
    run(&mut steering, Change::PutService { document, origin, if_match }).unwrap();
    let ids: Vec<_> = steering.state.service("shop").unwrap().backends.iter().map(|backend| backend.id).collect();
    let update = |index: usize, ready: bool| {
        let unready =
            Unready { since: Stamp::NEVER, starting: false, asked: None, message: "connection refused".to_owned() };
        HealthUpdate {
            backend: ids[index],
            report: HealthReport::Probe { reason: (!ready).then_some(unready), asked: None },
        }
    };
    steering.store.failing = 1;
    steering.update_health(vec![update(0, true), update(1, true)]);
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1, B.1]), "it holds");
    steering.recover();
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!(answers(&next.machine, FRONTEND), to(&[A.1, B.1]), "and is found again");
    assert!(next.ramps.get(ids[0]).is_some(), "with the warm-up that began then");
}

#[test]
fn the_end_of_a_drain_that_cannot_be_saved_is_answered_and_saved_later() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, drain("shop/a", "op-1")).unwrap();
    let mut operation = steering.operations.get("op-1").unwrap();
    operation.phase = OperationPhase::Drained;
    let (reply, mut answer) = oneshot::channel();
    let target: Target = "shop/a".parse().unwrap();
    let drain = steering.state.zero(&target).unwrap().drain.clone().unwrap();
    let ended = Box::new(DrainEnded { target: target.clone(), drain, operation, end: DrainEnd::Drained });
    steering.obey(Command::EndDrain { ended, reply });
    steering.store.failing = 1;
    steering.catch_up();
    assert_eq!(answer.try_recv(), Ok(DrainEndAck::Ended), "a drain does not wait for the disk");
    assert_eq!(steering.operations.get("op-1").unwrap().phase, OperationPhase::Drained);
    assert!(steering.drains.is_empty());
    let end = |steering: &Engine<Fake>| steering.state.zero(&target).unwrap().drain.clone().unwrap().end;
    assert_eq!(end(&steering), Some(DrainEnd::Drained));
    steering.recover();
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!(end(&next), Some(DrainEnd::Drained), "it is saved when there is room");
    assert_eq!(next.operations.get("op-1").unwrap().phase, OperationPhase::Drained);
}

#[test]
fn a_drain_ends_on_a_full_disk_though_its_progress_cannot_be_saved() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, drain("shop/a", "op-1")).unwrap();
    steering.store.failing = u32::MAX;
    for closed in 1..6 {
        let operation = steering.operations.update("op-1", |operation| operation.closed_idle = closed).unwrap();
        steering.obey(Command::KeepOperation(Box::new(operation)));
        steering.catch_up();
    }
    let target: Target = "shop/a".parse().unwrap();
    let mut operation = steering.operations.get("op-1").unwrap();
    operation.phase = OperationPhase::DeadlineReached;
    let drain = steering.state.zero(&target).unwrap().drain.clone().unwrap();
    let (reply, mut answer) = oneshot::channel();
    let ended = Box::new(DrainEnded { target, drain, operation, end: DrainEnd::DeadlineReached });
    steering.obey(Command::EndDrain { ended, reply });
    assert!(steering.later.is_due(Instant::now()), "at once, not after a pause");
    steering.catch_up();
    assert_eq!(answer.try_recv(), Ok(DrainEndAck::Ended));
}

#[test]
fn a_zero_holds_on_a_full_disk_and_is_saved_when_there_is_room() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.store.failing = 2;
    let done = run(&mut steering, zero("shop/a", false)).unwrap();
    assert!(done.unsaved.is_some_and(|why| why.contains("no space")), "and says so");
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
    let target: Target = "shop/a".parse().unwrap();
    assert!(done.published.zeros.contains_key(&target), "it is proven");
    // What needs no hurry is refused, as before.
    assert!(matches!(run(&mut steering, named("other", &["10.96.7.7:80"], &[C])), Err(ChangeError::Failed(_))));
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[B.1]));
    steering.recover();
    let kinds: Vec<_> = steering.events.after(0, 100).events.iter().map(|event| event.kind).collect();
    let told = |kind| kinds.iter().filter(|told| **told == kind).count();
    assert_eq!((told(EventKind::StoreFailed), told(EventKind::StoreRecovered)), (1, 1), "{kinds:?}");
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!(answers(&next.machine, FRONTEND), to(&[B.1]));
    assert_eq!(next.state.zero(&target).unwrap().owner, "test");
}

#[test]
fn the_progress_of_a_drain_that_cannot_be_saved_is_saved_later() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, drain("shop/a", "op-1")).unwrap();
    steering.operations.update("op-1", |operation| operation.closed_idle = 7);
    let operation = steering.operations.get("op-1").unwrap();
    steering.obey(Command::KeepOperation(Box::new(operation)));
    steering.store.failing = 1;
    steering.catch_up();
    steering.recover();
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!(next.operations.get("op-1").unwrap().closed_idle, 7);
}
