//! What an agent makes of tables that it finds in the kernel: its own, another store's, and zeros that it does not know.

use super::{super::start::check_identity, *};
use crate::{kernel::Held, model::State, plan::Entries};

#[test]
fn a_store_that_is_older_than_the_tables_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    let mut tables = first.machine.clone();
    drop(first);
    let (store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let check = |tables: &Fake| {
        check_identity(&store, &state, &held(store.identity(), tables), Brake::default(), || Ok(state.clone()))
    };
    check(&tables).unwrap();
    tables.backends.get_mut(&0).unwrap().port = 1;
    let error = check(&tables).unwrap_err().to_string();
    assert!(error.contains("another address for backend shop/a"), "{error}");
}

#[test]
fn zeros_whose_records_are_lost_hold_when_files_bring_their_backends_again() {
    let (dir, empty) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let Change::PutService { document, .. } = service(&[FRONTEND], &[A, B, C]) else { unreachable!("it puts one") };
    let documents = [serde_json::to_string(&document).unwrap()];
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B, C])).unwrap();
    for target in ["shop/c", "node/node-1"] {
        run(&mut first, zero(target, true)).unwrap();
    }
    let mut second = begin(&empty, first.machine.clone());
    second.begin(vec![vec![super::faults::changed("/shop.json", &documents)]]).unwrap();
    assert_eq!(answers(&second.machine, FRONTEND), to(&[B.1]));
    let (node, backend) = ("node/node-1".parse().unwrap(), "shop/c".parse().unwrap());
    assert!(second.state.zero(&node).is_some() && second.state.zero(&backend).is_some());
}

#[test]
fn a_proof_is_of_the_table_that_it_counts_in() {
    let dir = TempDir::new().unwrap();
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    let target: crate::model::Target = "node/node-1".parse().unwrap();
    run(&mut first, zero("node/node-1", false)).unwrap();
    let at = first.zeros[&target].at;
    let mut tables = first.machine.clone();
    drop(first);
    let same = steering(&dir, tables.clone());
    assert!(same.zeros[&target].unattached.is_none() && same.zeros[&target].at == at);
    drop(same);
    // As after tables were lost, and the agent that made others was killed at once; and whoever comes later.
    tables.counter_table = 7;
    for _ in 0..2 {
        let later = steering(&dir, tables.clone());
        assert!(later.zeros[&target].unattached.is_some() && later.zeros[&target].at == at);
    }
}

#[test]
fn a_copy_of_the_store_from_before_a_change_is_refused() {
    let (dir, copy) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = crate::source::store::FILE;
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    drop(std::mem::replace(&mut first.store, Store::open(copy.path(), LIMITS, false).unwrap().0));
    std::fs::copy(dir.path().join(file), copy.path().join("old")).unwrap();
    let tables = first.machine.clone();
    drop(first);
    let mut second = steering(&dir, tables);
    run(&mut second, service(&[FRONTEND], &[A, B, C])).unwrap();
    let tables = second.machine.clone();
    drop(second);
    let check = |brake: Brake| {
        let (store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
        check_identity(&store, &state, &held(store.identity(), &tables), brake, || Ok(state.clone()))
    };
    check(Brake::default()).unwrap();
    std::fs::rename(copy.path().join("old"), dir.path().join(file)).unwrap();
    let error = check(Brake::default()).unwrap_err().to_string();
    assert!(error.contains("older copy") && error.contains("--accept-older"), "{error}");
    check(Brake { accept_older: true, ..Brake::default() }).unwrap();
}

/// What an agent finds in the kernel.
fn held(store: [u8; 16], tables: &Fake) -> Held {
    let Entries { backends, nodes, .. } = tables.read().unwrap();
    Held { store, revision: tables.revision as u32, backends, nodes }
}

#[test]
fn tables_that_steer_do_not_go_to_a_store_without_them() {
    let (dir, empty) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    let (theirs, full) = (first.store.identity(), first.state.clone());
    let mut tables = first.machine.clone();
    let (store, state) = Store::open(empty.path(), LIMITS, false).unwrap();
    let check = |tables: &Fake, brake: Brake, desired: &State| {
        check_identity(&store, &state, &held(theirs, tables), brake, || Ok(desired.clone()))
    };
    let (usual, accepted) = (Brake::default(), Brake { accept_empty: true, ..Brake::default() });
    let error = check(&tables, usual, &state).unwrap_err().to_string();
    for word in ["2 backends", "--state-dir", "--accept-empty", "--apply"] {
        assert!(error.contains(word), "{error}");
    }
    check(&tables, accepted, &state).unwrap();
    check(&tables, Brake { adopt: true, ..usual }, &state).unwrap();
    // Files bring what is steered.
    check(&tables, usual, &full).unwrap();
    // But not the zeros.
    run(&mut first, zero("node/node-1", false)).unwrap();
    let zeroed = first.machine.clone();
    assert!(check(&zeroed, usual, &full).unwrap_err().to_string().contains("1 zero would end"));
    // Tables that hold nothing are anybody's.
    tables.backends.clear();
    check(&tables, usual, &state).unwrap();
}

#[test]
fn what_the_kernel_steers_is_adopted_by_a_store_without_it_and_every_prefix_steers() {
    let (dir, empty) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut first = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    run(&mut first, service(&[FRONTEND, "10.96.0.2:53/udp"], &[A, B, C])).unwrap();
    run(&mut first, zero("shop/c", false)).unwrap();
    let mut tables = first.machine.clone();
    tables.history.clear();
    let mut second = begin(&empty, tables);
    second.adopts = true;
    second.begin(Vec::new()).unwrap();
    let adopted = second.state.services().next().unwrap();
    assert_eq!((adopted.name.as_str(), adopted.backends.len(), adopted.frontends.len()), ("adopted-0", 2, 2));
    let weights: Vec<_> = adopted.backends.iter().map(|backend| backend.weight).collect();
    assert_eq!(weights[0], 2 * weights[1], "{weights:?}");
    for tables in &second.machine.history {
        for draw in 0..200 {
            let answer = tables.connect(&at(FRONTEND), draw);
            assert!(to(&[A.1, B.1]).contains(&answer), "{answer:?} after {}", tables.op);
        }
    }
    assert_eq!(answers(&second.machine, FRONTEND), to(&[A.1, B.1]));
}

#[test]
fn a_zero_that_only_the_kernel_has_stays() {
    let dir = TempDir::new().unwrap();
    let mut first = steering(&dir, Fake::default());
    run(&mut first, service(&[FRONTEND], &[A, B])).unwrap();
    let node = first.state.node("node-1").unwrap().id;
    let mut tables = first.machine.clone();
    drop(first);
    // The agent died between the kernel's acknowledgement and the store.
    tables.run(&MapOp::SetNode { node: node.0, closed: sluice_common::tables::CLOSED_ZERO }).unwrap();
    let second = steering(&dir, tables);
    assert_eq!(answers(&second.machine, FRONTEND), to(&[B.1]));
    let zero = second.state.node("node-1").unwrap().zero.clone().unwrap();
    assert!(zero.reason.contains("found in force"), "{}", zero.reason);
}
