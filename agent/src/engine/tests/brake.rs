//! The brake: what files would remove at once is held, told, and let go when somebody accepts it.

use super::{
    faults::{changed, document, ready},
    *,
};
use crate::{
    engine::guards::Guards,
    model::RefusalKind,
    source::files::FileEvent,
    view::{events::EventKind, published::AgentReadiness},
};

/// An engine with services `s1` to `s4`, each of a file of its own.
fn braking(dir: &TempDir) -> Engine<Fake> {
    let mut steering = steering(dir, Fake::default());
    steering.brake.limit = 30;
    let look: Vec<_> = (1..=4).map(|n| changed(&format!("/{n}"), &[document(&format!("s{n}"), n, &[1, 1])])).collect();
    steering.documents(&look).unwrap();
    assert_eq!(steering.state.service_count(), 4);
    steering
}

fn removed(files: &[u8]) -> Vec<FileEvent> {
    files.iter().map(|n| FileEvent::Removed { file: format!("/{n}").into() }).collect()
}

fn held(steering: &Engine<Fake>) -> usize {
    steering.events.after(0, usize::MAX).events.iter().filter(|event| event.kind == EventKind::ShrinkHeld).count()
}

#[test]
fn an_emptied_directory_is_held_until_it_is_accepted() {
    let dir = TempDir::new().unwrap();
    let mut steering = braking(&dir);
    let before = steering.machine.done;
    steering.documents(&removed(&[1, 2, 3, 4])).unwrap();
    assert_eq!((steering.state.service_count(), steering.machine.done), (4, before));
    let AgentReadiness::NotReady(why) = ready(&steering) else { panic!("it is ready") };
    assert!(why.contains("4 of 4 services") && why.contains("accept-shrink"), "{why}");
    steering.documents(&[]).unwrap();
    steering.retry_documents();
    assert_eq!((steering.state.service_count(), held(&steering)), (4, 1), "told once");
    assert_eq!(steering.accept_shrink().len(), 4);
    assert_eq!((steering.state.service_count(), ready(&steering)), (0, AgentReadiness::Ready));
    assert!(steering.accept_shrink().is_empty(), "nothing is held any more");
}

#[test]
fn what_comes_with_it_is_in_force_and_what_comes_back_is_not_removed_later() {
    let dir = TempDir::new().unwrap();
    let mut steering = braking(&dir);
    let mut look = vec![changed("/5", &[document("s5", 5, &[1])])];
    look.extend(removed(&[1, 2, 3]));
    steering.documents(&look).unwrap();
    assert_eq!(steering.state.service_count(), 5, "additions pass");
    let back: Vec<_> = (1..=3).map(|n| changed(&format!("/{n}"), &[document(&format!("s{n}"), n, &[1, 1])])).collect();
    steering.documents(&back).unwrap();
    assert_eq!((steering.accept_shrink().len(), steering.state.service_count()), (0, 5));
    assert_eq!(ready(&steering), AgentReadiness::Ready);
}

#[test]
fn one_of_several_goes_and_backends_count_too() {
    let dir = TempDir::new().unwrap();
    let mut steering = braking(&dir);
    steering.documents(&removed(&[4])).unwrap();
    assert_eq!((steering.state.service_count(), held(&steering)), (3, 0));
    let emptied: Vec<_> = (1..=2).map(|n| changed(&format!("/{n}"), &[document(&format!("s{n}"), n, &[])])).collect();
    steering.documents(&emptied).unwrap();
    assert_eq!((steering.state.backend_count(), held(&steering)), (6, 1));
    steering.accept_shrink();
    assert_eq!(steering.state.backend_count(), 2);
}

#[test]
fn what_a_service_is_and_its_file_says_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let mut steering = braking(&dir);
    let edited = |steering: &Engine<Fake>| steering.state.service("s1").unwrap().is_edited();
    assert!(!edited(&steering));
    let patch = serde_json::json!({"spec": {"minReadyPercent": 7}});
    run(&mut steering, Change::PatchService { service: Name::new("s1").unwrap(), patch, if_match: None }).unwrap();
    assert!(edited(&steering));
}

#[test]
fn many_documents_that_leave_too_much_out_are_refused_and_a_request_that_names_it_is_not() {
    let dir = TempDir::new().unwrap();
    let mut steering = braking(&dir);
    let left_out = |n: u8| {
        let text = document(&format!("s{n}"), n, &[1]);
        let document = parse::service(text.as_bytes(), parse::DocumentFormat::Json).unwrap();
        Change::PutService { document: Box::new(document), origin: Origin::Api, if_match: None }
    };
    let changes: Vec<_> = (1..=3).map(left_out).collect();
    let braked = Options { guards: Guards { shrink: true, ..Guards::default() }, ..Options::now() };
    let Err(ChangeError::Refused(refusal)) = steering.change(&changes, braked.clone()) else {
        panic!("it is not refused")
    };
    assert_eq!((refusal.kind, refusal.services.len()), (RefusalKind::Conflict, 3));
    assert!(refusal.message.contains("3 of 8 backends") && refusal.message.contains("--accept-shrink"), "{refusal}");
    assert_eq!(steering.state.backend_count(), 8);
    steering.change(&changes[..2], braked).unwrap();
    steering.change(&changes, Options::now()).unwrap();
    assert_eq!(steering.state.backend_count(), 5);
}
