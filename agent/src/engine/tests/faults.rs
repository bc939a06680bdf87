//! A disk that is full and a kernel that refuses: nothing is lost, and what was not done is not said to be.

use jiff::Timestamp;
use serde_json::json;

use super::*;
use crate::{
    model::{DrainRequest, OperationPhase, Target},
    source::{files::FileEvent, store::Batch},
    view::{
        events::EventKind,
        operations::{Gone, Operation},
        published::AgentReadiness,
    },
};

pub(super) fn document(name: &str, host: u8, weights: &[u32]) -> String {
    let backends: Vec<_> = (1..)
        .zip(weights)
        .map(|(n, weight)| json!({"name": format!("n{n}"), "address": format!("10.0.{host}.{n}:80"), "weight": weight}))
        .collect();
    json!({
        "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": name},
        "spec": {"frontends": [format!("10.96.7.{host}:80")], "backends": backends}
    })
    .to_string()
}

pub(super) fn changed(file: &str, documents: &[String]) -> FileEvent {
    let documents = documents
        .iter()
        .flat_map(|text| parse::documents(text.as_bytes(), parse::DocumentFormat::Json).unwrap())
        .collect();
    FileEvent::Changed { file: file.into(), documents }
}

fn weight(steering: &Engine<Fake>, service: &str) -> Option<u32> {
    Some(steering.state.service(service)?.backends[0].weight)
}

pub(super) fn ready(steering: &Engine<Fake>) -> AgentReadiness {
    steering.as_published(steering.state.clone()).ready.clone()
}

pub(super) fn drain(target: &str, operation: &str) -> Change {
    let Change::Zero { target, zero, .. } = zero(target, true) else { unreachable!() };
    let drain = Some(DrainRequest { operation: operation.into(), ..DrainRequest::default() });
    Change::Zero { target, zero, drain, force: true }
}

#[test]
fn a_files_change_that_meets_a_fault_is_said_to_have_failed_and_is_taken_in_by_the_next_look() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    steering.documents(&[changed("/a", &[document("shop", 1, &[100, 100])])]).unwrap();
    let lighter = || [changed("/a", &[document("shop", 1, &[5, 100])])];
    let faults: [fn(&mut Engine<Fake>); 2] =
        [|steering| steering.store.failing = 1, |steering| steering.machine.fail_at = Some(steering.machine.done)];
    for fault in faults {
        fault(&mut steering);
        assert!(steering.documents(&lighter()).is_err());
        assert_eq!(weight(&steering, "shop"), Some(100));
        assert!(matches!(ready(&steering), AgentReadiness::NotReady(why) if why.contains("/a is not in force yet")));
        assert!(steering.documents(&lighter()).is_ok());
        assert_eq!((weight(&steering, "shop"), ready(&steering)), (Some(5), AgentReadiness::Ready));
        steering.documents(&[changed("/a", &[document("shop", 1, &[100, 100])])]).unwrap();
    }
}

#[test]
fn what_a_document_was_refused_is_tried_again_after_a_fault_too() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, named("other", &["10.96.7.1:80"], &[A])).unwrap();
    steering.documents(&[changed("/a", &[document("shop", 1, &[1])])]).unwrap();
    assert!(steering.state.service("shop").is_none(), "its frontend is another's");
    // The frontend is free now, and the document's own commit meets a full disk.
    let delete = Change::DeleteService { service: Name::new("other").unwrap(), if_match: None };
    steering.change(std::slice::from_ref(&delete), Options { dry_run: true, ..Options::now() }).unwrap();
    let next = steering.next(&[delete]).unwrap();
    steering.store.commit_batch(&next.state, Batch { touched: &[next.touched], ..Batch::default() }).unwrap();
    steering.state = next.state;
    steering.store.failing = 1;
    steering.retry_documents();
    assert!(steering.state.service("shop").is_none());
    steering.retry_documents();
    assert!(steering.state.service("shop").is_some());
}

#[test]
fn a_table_that_finds_no_room_keeps_its_own_document_out_and_no_other() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    steering.slots = 128;
    steering.reconcile().unwrap();
    let odd = document("odd", 1, &[997, 3]);
    let look = [changed("/a", &[odd, document("small", 2, &[1, 1]), document("tiny", 3, &[1])])];
    steering.documents(&look).unwrap();
    assert_eq!(
        (weight(&steering, "odd"), weight(&steering, "small"), weight(&steering, "tiny")),
        (None, Some(1), Some(1))
    );
    let events = steering.events.after(0, 100).events;
    let told: Vec<_> = events.iter().filter(|event| event.kind == EventKind::SourceFailed).collect();
    assert!(told.len() == 1 && told[0].message.contains("--max-slots"), "{told:?}");
    assert_eq!(ready(&steering), AgentReadiness::Ready, "it is refused, not pending");
    // Whatever changes, it is tried again, and fits once it asks for less.
    steering.documents(&[changed("/a", &[document("odd", 1, &[1, 1]), document("small", 2, &[1, 1])])]).unwrap();
    assert_eq!(weight(&steering, "odd"), Some(1));
}

#[test]
fn a_request_whose_table_finds_no_room_is_refused_and_writes_nothing() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.slots = 64;
    steering.reconcile().unwrap();
    let done = steering.machine.done;
    let odd = [("a", A.1, A.2, 997), ("b", B.1, B.2, 3)];
    let both = [named("cart", &["10.96.0.9:80"], &[C]), service(&[FRONTEND], &odd)];
    let error = steering.change(&both, Options::now()).unwrap_err();
    let ChangeError::Refused(refusal) = error else { panic!("{error}") };
    assert_eq!((refusal.document, refusal.field.as_deref()), (Some(2), Some("spec.backends")), "{refusal}");
    assert_eq!(steering.machine.done, done);
}

#[test]
fn a_zero_holds_though_what_was_restored_before_it_got_no_table() {
    type Fault = fn(&mut Engine<Fake>);
    let faults: [Fault; 3] = [
        |steering| {
            steering.slots = 16;
            steering.reconcile().unwrap();
        },
        |steering| steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { .. })),
        |steering| steering.machine.refuses = Some(|write| matches!(write, MapOp::PutBackend { .. })),
    ];
    for fault in faults {
        let dir = TempDir::new().unwrap();
        let mut steering = steering(&dir, Fake::default());
        run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
        run(&mut steering, zero("shop/a", false)).unwrap();
        fault(&mut steering);
        run(&mut steering, restore("shop/a")).unwrap();
        run(&mut steering, zero("shop/b", true)).unwrap();
        assert!(!answers(&steering.machine, FRONTEND).contains(&Some(Some(B.1.to_owned()))));
    }
}

#[test]
fn a_zero_ends_in_its_time_though_a_table_finds_no_room_for_long() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, named("other", &["10.96.7.7:80"], &[C])).unwrap();
    steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { .. }));
    run(&mut steering, zero("shop/a", false)).unwrap();
    assert!(matches!(ready(&steering), AgentReadiness::NotReady(_)));
    let Change::Zero { target, mut zero, drain, force } = zero("node/node-3", true) else { unreachable!() };
    zero.expires = Some(Timestamp::now());
    steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { entries, .. } if entries.len() > 4));
    run(&mut steering, Change::Zero { target: target.clone(), zero, drain, force }).unwrap();
    steering.work_at_leisure();
    assert!(!steering.state.is_zeroed(&target));
}

#[test]
fn a_fault_that_lasts_is_told_once() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { .. }));
    run(&mut steering, zero("shop/a", false)).unwrap();
    (0..5).for_each(|_| steering.recover());
    let told = steering.events.after(0, usize::MAX).events;
    assert_eq!(told.iter().filter(|event| event.kind == EventKind::KernelFailed).count(), 1);
}

#[test]
fn a_document_that_finds_no_ids_is_taken_in_once_some_are_free() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    let weights = [1; 200];
    steering.documents(&[changed("/a", &[document("old", 1, &weights)])]).unwrap();
    let old = steering.state.service("old").unwrap().clone();
    steering.documents(&[changed("/a", &[document("new", 2, &weights)])]).unwrap();
    assert_eq!(weight(&steering, "new"), None, "256 backends may be, and 200 are waited for");
    let backends = old.backends.iter().map(|backend| backend.id).collect();
    let retired = Retired { waited: true, services: vec![old.id], backends, ..Retired::default() };
    steering.obey(Command::GracePeriodElapsed(retired));
    assert_eq!(weight(&steering, "new"), Some(1));
}

#[test]
fn a_refused_document_that_meets_a_fault_is_not_tried_with_all_that_comes_back() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, named("other", &["10.96.7.1:80"], &[A])).unwrap();
    steering.documents(&[changed("/a", &[document("shop", 1, &[1])])]).unwrap();
    steering.machine.refuses = Some(|write| matches!(write, MapOp::WriteTable { .. }));
    run(&mut steering, Change::DeleteService { service: Name::new("other").unwrap(), if_match: None }).unwrap();
    assert!(steering.documents_retry.is_pending(), "its frontend is free, and its table is refused");
    steering.machine.refuses = None;
    steering.obey(Command::GracePeriodElapsed(Retired::default()));
    assert_eq!(weight(&steering, "shop"), None, "it is tried when its time has come");
    steering.retry_documents();
    assert_eq!((weight(&steering, "shop"), steering.documents_retry.is_pending()), (Some(1), false));
}

#[test]
fn a_zero_that_failed_and_that_the_kernel_did_not_give_back_is_not_the_next_agents() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    // The zero's own write succeeds; neither the table of the other service nor the way back does.
    steering.machine.refuses = Some(|write| {
        matches!(write, MapOp::WriteTable { .. } | MapOp::PutBackend { .. } | MapOp::CloseBackend { closed: 0, .. })
    });
    let both = [zero("shop/a", false), named("other", &["10.96.7.7:80"], &[C])];
    let failed = steering.change(&both, Options::now());
    assert!(matches!(failed, Err(ChangeError::Failed(_))));
    let mut tables = steering.machine.clone();
    assert_eq!(answers(&tables, FRONTEND), to(&[B.1]), "the kernel holds it");
    drop(steering);
    tables.refuses = None;
    let next = super::steering(&dir, tables);
    assert!(next.state.zeroed().is_empty());
    assert_eq!(answers(&next.machine, FRONTEND), to(&[A.1, B.1]));
    assert!(next.store.extras("undone/").unwrap().is_empty(), "and that is all");
}

#[test]
fn the_store_keeps_no_more_operations_than_a_start_would() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    for number in 0..150 {
        run(&mut steering, drain("shop/a", &format!("op-{number:03}"))).unwrap();
        run(&mut steering, restore("shop/a")).unwrap();
        steering.catch_up();
    }
    assert_eq!(steering.store.extras("operation/").unwrap().len(), 128);
}

#[test]
fn a_restart_remembers_a_lasting_drain_however_many_came_after_it() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B, C])).unwrap();
    run(&mut steering, drain("node/node-1", "op-00000000000000001")).unwrap();
    // A backend of the drained node leaves the configuration.
    run(&mut steering, service(&[FRONTEND], &[B, C])).unwrap();
    let gone = |steering: &Engine<Fake>| steering.operations.get("op-00000000000000001").unwrap().gone;
    let before: Vec<Gone> = gone(&steering);
    assert_eq!(before.len(), 1);
    let target: Target = "shop/b".parse().unwrap();
    let later = (2..300).map(|number| {
        let now = jiff::Timestamp::now();
        let id = format!("op-{number:017}");
        let operation = Operation { phase: OperationPhase::Drained, ..Operation::drain(&id, &target, now, now) };
        (format!("operation/{id}"), Some(serde_json::to_vec(&operation).unwrap()))
    });
    let extras: Vec<_> = later.collect();
    steering.store.commit_batch(&steering.state, Batch { extras: &extras, ..Batch::default() }).unwrap();
    drop(steering);
    let next = super::steering(&dir, Fake::default());
    assert_eq!(gone(&next), before);
    assert_eq!(next.operations.list().iter().filter(|operation| operation.is_finished()).count(), 128);
}

#[test]
fn turn_times_that_cannot_be_measured_are_tried_again_and_steering_goes_on() {
    let dir = TempDir::new().unwrap();
    let refuses: fn(&MapOp) -> bool = |write| matches!(write, MapOp::SetMeasured { .. });
    let mut steering = steering(&dir, Fake { refuses: Some(refuses), ..Fake::default() });
    let Change::PutService { mut document, origin, if_match } = service(&[FRONTEND], &[A, B]) else { unreachable!() };
    document.spec.turn_time = true;
    run(&mut steering, Change::PutService { document, origin, if_match }).unwrap();
    assert_eq!(answers(&steering.machine, FRONTEND), to(&[A.1, B.1]));
    assert!(steering.machine.measured.is_empty());
    steering.machine.refuses = None;
    assert!(steering.measure_retry.is_pending(), "it is tried again, later");
    steering.measure_again();
    assert_eq!(steering.machine.measured.len(), 2);
}
