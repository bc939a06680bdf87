//! Which operations are kept, and how they are waited for.

use super::*;

#[tokio::test]
async fn finished_operations_are_answered_at_once_and_the_oldest_go() {
    let operations = Operations::default();
    let target: Target = "node/a".parse().unwrap();
    operations.put(Operation::drain("op-0", &target, Timestamp::now(), Timestamp::now()));
    let ids: Vec<_> =
        (0..KEPT).map(|_| operations.finished(OperationKind::Zero, &target, None, Timestamp::now(), 7)).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    assert_eq!(operations.list().len(), KEPT);
    assert_eq!(operations.get(&ids[0]), None);
    assert!(operations.get("op-0").is_some(), "it goes on");
    let last = operations.wait(&ids[KEPT - 1], Wait::Finished, Duration::from_secs(60)).await.unwrap();
    assert_eq!((last.phase, last.remaining.total), (OperationPhase::Zeroed, 7));
}

#[test]
fn one_that_ends_late_is_there_to_be_asked_for() {
    let operations = Operations::default();
    let target: Target = "node/a".parse().unwrap();
    operations.put(Operation::drain("op-0", &target, Timestamp::now(), Timestamp::now()));
    let zero = || operations.finished(OperationKind::Zero, &target, None, Timestamp::now(), 7);
    (0..KEPT).for_each(|_| drop(zero()));
    operations.update("op-0", |operation| {
        (operation.phase, operation.finished_at) = (OperationPhase::Drained, Some(Timestamp::now()));
    });
    zero();
    assert!(operations.get("op-0").is_some_and(|operation| operation.is_finished()));
}

#[test]
fn no_two_of_fifty_that_begin_together_get_one_id() {
    let operations = Operations::default();
    let now = Timestamp::now();
    let ids: std::collections::BTreeSet<_> = (0..50).map(|_| operations.new_id_at(now)).collect();
    assert_eq!(ids.len(), 50, "no operation was put under any of them yet");
}

#[test]
fn what_is_left_is_said_in_words() {
    let left = |total, flying, inbound| Remaining {
        total,
        in_flight: Some(flying),
        idle: Some(total - flying),
        inbound,
        ..Remaining::default()
    };
    for (remaining, phase, wanted) in [
        (left(1, 1, None), OperationPhase::Waiting, "1 connection left: 1 in flight, 0 idle"),
        (
            left(3, 1, Some(0)),
            OperationPhase::ClosingIdle,
            "3 connections left: 1 in flight, 2 idle; 0 accepted by its backends here",
        ),
        (
            Remaining { sessions: Some(2), ..left(3, 1, None) },
            OperationPhase::Waiting,
            "3 connections left: 1 in flight, 2 idle; 2 idle ones are taken for sessions, and not closed for being idle \
             unless the service says `protocol: request`",
        ),
        (
            Remaining { sessions: Some(1), ..left(1, 0, None) },
            OperationPhase::DeadlineReached,
            "the deadline is over, and 1 steered connection is left; 1 idle one is taken for a session, and not closed \
             for being idle unless the service says `protocol: request`",
        ),
        (left(0, 0, None), OperationPhase::Drained, "nothing is left: it may be stopped"),
        (left(1, 0, None), OperationPhase::DeadlineReached, "the deadline is over, and 1 steered connection is left"),
        (
            left(0, 0, Some(1)),
            OperationPhase::DeadlineReached,
            "the deadline is over, and 0 steered and 1 accepted connection is left",
        ),
        (left(0, 0, Some(0)), OperationPhase::DeadlineReached, "the deadline was over, and what was left is closed"),
    ] {
        assert_eq!(remaining.message(phase, true), wanted);
    }
    assert!(left(0, 0, None).message(OperationPhase::DeadlineReached, false).ends_with("is not known"));
    let with = |flows, remaining| Remaining { flows: Some(flows), ..remaining };
    for (remaining, phase, wanted) in [
        (
            with(2, left(0, 0, Some(1))),
            OperationPhase::Waiting,
            "0 connections left: 0 in flight, 0 idle; 2 flows of datagrams; 1 accepted by its backends here",
        ),
        (
            with(1, left(0, 0, None)),
            OperationPhase::DeadlineReached,
            "the deadline is over, and 1 flow of datagrams moves with its next datagram",
        ),
        (
            with(2, left(1, 0, None)),
            OperationPhase::DeadlineReached,
            "the deadline is over, and 1 steered connection is left; 2 flows of datagrams move with their next datagrams",
        ),
    ] {
        assert_eq!(remaining.message(phase, true), wanted);
    }
}

#[tokio::test]
async fn a_drain_is_waited_for_and_does_not_move_once_it_is_finished() {
    let operations = Operations::default();
    let target = "shop/a".parse().unwrap();
    operations.put(Operation::drain("op-1", &target, Timestamp::now(), Timestamp::now()));
    let zeroed = operations.wait("op-1", Wait::Zeroed, Duration::from_secs(60)).await.unwrap();
    assert!(!zeroed.is_finished());
    let (waited, _) = tokio::join!(operations.wait("op-1", Wait::Finished, Duration::from_secs(60)), async {
        operations.update("op-1", |operation| operation.phase = OperationPhase::Cancelled);
    });
    assert_eq!(waited.unwrap().phase, OperationPhase::Cancelled);
    assert_eq!(operations.update("op-1", |operation| operation.phase = OperationPhase::Drained), None);
    assert_eq!(operations.get("op-1").unwrap().phase, OperationPhase::Cancelled);
}
