//! Programs that are detached: nothing is said to be proven that is not.

use sluice_common::verdict::Program;
use tokio::sync::oneshot;

use super::*;
use crate::{
    control::attachment::{AttachmentNews, Missing, Unattached},
    engine::client::{DrainEndAck, DrainEnded},
    model::{DrainEnd, DrainRequest, OperationPhase, Target},
    view::{
        events::EventKind,
        published::{AgentReadiness, Published},
    },
};

const TARGET: &str = "node/node-1";

fn with_service(dir: &TempDir) -> Engine<Fake> {
    let mut steering = steering(dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering
}

fn missing(programs: &[Program]) -> Missing {
    Missing { programs: programs.to_vec(), ..Missing::default() }
}

fn lost() -> AttachmentNews {
    let lost = missing(&[Program::Connect4]);
    AttachmentNews { missing: lost.clone(), lost, ..AttachmentNews::default() }
}

fn back(from: jiff::Timestamp) -> AttachmentNews {
    let unattached = Some(Unattached { from, to: jiff::Timestamp::now() });
    AttachmentNews { back: missing(&[Program::Connect4]), unattached, ..AttachmentNews::default() }
}

fn unattached(steering: &Engine<Fake>) -> Option<Unattached> {
    steering.zeros.get(&TARGET.parse::<Target>().unwrap()).unwrap().unattached
}

fn is_ready(published: &Published) -> bool {
    published.ready == AgentReadiness::Ready
}

#[test]
fn a_zero_says_what_is_not_attached_before_anybody_has_noticed() {
    let dir = TempDir::new().unwrap();
    let mut steering = with_service(&dir);
    steering.machine.unattached = vec![Program::Connect6];
    for again in ["a zero", "the same again"] {
        let done = run(&mut steering, zero(TARGET, false)).unwrap();
        assert_eq!(done.published.missing, missing(&[Program::Connect6]), "{again}");
        assert!(!is_ready(&done.published), "{again}");
    }
}

#[test]
fn a_time_without_programs_is_told_and_kept_with_the_zeros_that_were_there() {
    let dir = TempDir::new().unwrap();
    let mut steering = with_service(&dir);
    let before = jiff::Timestamp::now();
    let done = run(&mut steering, zero(TARGET, false)).unwrap();
    assert!(is_ready(&done.published) && unattached(&steering).is_none());
    steering.attachment(lost());
    assert!(!is_ready(&steering.publish()));
    steering.attachment(back(before));
    assert!(is_ready(&steering.publish()));
    let found = unattached(&steering).unwrap();
    assert!(found.from > before, "what was before the zero is of no interest");
    let told = steering.events.after(0, 99).events;
    let told: Vec<_> = told.iter().map(|event| event.kind).collect();
    assert!(told.ends_with(&[EventKind::AttachmentLost, EventKind::AttachmentRestored]), "{told:?}");
    let machine = steering.machine.clone();
    drop(steering);
    let mut next = self::steering(&dir, machine);
    assert_eq!(unattached(&next), Some(found));
    run(&mut next, restore(TARGET)).unwrap();
    run(&mut next, zero(TARGET, false)).unwrap();
    assert_eq!(unattached(&next), None, "a new zero proves what is new");
}

#[test]
fn what_was_detached_while_no_agent_ran_is_told_and_proves_nothing() {
    let dir = TempDir::new().unwrap();
    let mut steering = with_service(&dir);
    run(&mut steering, zero(TARGET, false)).unwrap();
    let machine = steering.machine.clone();
    drop(steering);
    let mut next = begin(&dir, machine);
    next.absent = vec![Program::Connect4];
    next.begin(Vec::new()).unwrap();
    let told = next.events.after(0, 99).events;
    assert!(told.iter().any(|event| event.kind == EventKind::AttachmentLost), "{told:?}");
    let found = unattached(&next);
    assert!(found.is_some());
    let machine = next.machine.clone();
    drop(next);
    assert_eq!(unattached(&self::steering(&dir, machine)), found, "and the agent after that knows it");
}

#[test]
fn no_drain_ends_as_drained_while_programs_are_detached() {
    let dir = TempDir::new().unwrap();
    let mut steering = with_service(&dir);
    let Change::Zero { target, zero, force, .. } = zero(TARGET, true) else { unreachable!() };
    let drain = Some(DrainRequest { operation: "op-1".into(), ..DrainRequest::default() });
    run(&mut steering, Change::Zero { target: target.clone(), zero, drain, force }).unwrap();
    let end = |steering: &mut Engine<Fake>, end, phase| {
        let mut operation = steering.operations.get("op-1").unwrap();
        operation.phase = phase;
        let drain = steering.state.zero(&target).unwrap().drain.clone().unwrap();
        let (reply, mut answer) = oneshot::channel();
        let ended = Box::new(DrainEnded { target: target.clone(), drain, operation, end });
        steering.obey(Command::EndDrain { ended, reply });
        steering.catch_up();
        answer.try_recv().unwrap()
    };
    steering.machine.unattached = vec![Program::SockOps];
    let ack = end(&mut steering, DrainEnd::Drained, OperationPhase::Drained);
    assert_eq!((ack, is_ready(&steering.publish())), (DrainEndAck::Superseded, false));
    let ack = end(&mut steering, DrainEnd::DeadlineReached, OperationPhase::DeadlineReached);
    assert_eq!(ack, DrainEndAck::Ended, "its deadline is its deadline");
}
