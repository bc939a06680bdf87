//! A dry run shows what runs: the same writes, in the same order.

use super::*;
use crate::{
    model::{DrainRequest, Target},
    view::writes,
};

fn drain(target: &str) -> Change {
    let Change::Zero { target, zero, .. } = zero(target, true) else { unreachable!() };
    let drain = Some(DrainRequest { operation: format!("op {target}"), ..DrainRequest::default() });
    Change::Zero { target, zero, drain, force: true }
}

/// Rehearses a change, makes it, and compares.
fn assert_same(steering: &mut Engine<Fake>, change: Change) {
    let name = format!("{change:?}");
    let (done, before) = (steering.machine.done, steering.state.clone());
    let options = Options { dry_run: true, ..Options::now() };
    let rehearsed = steering.change(std::slice::from_ref(&change), options).unwrap();
    assert_eq!((steering.machine.done, steering.state.revision()), (done, before.revision()), "{name}");
    steering.machine.history.clear();
    steering.change(&[change], Options::now()).unwrap();
    let written: Vec<_> = steering.machine.history.iter().map(|tables| tables.op.clone()).collect();
    assert_eq!(rehearsed.plan, writes::lines(&written, &before, &steering.state), "{name}");
    assert_eq!(rehearsed.published.state.revision(), steering.state.revision(), "{name}");
    while !steering.stale().is_empty() {
        steering.work_at_leisure();
    }
}

#[test]
fn it_shows_exactly_the_writes_in_their_order() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake { keep_history: true, ..Fake::default() });
    for (change, _) in steps() {
        assert_same(&mut steering, change);
    }
    let light = ("b", B.1, B.2, 0);
    for change in [
        service(&[FRONTEND], &[A, B]),
        // The weight goes: nothing opens, so it closes before its table is built.
        service(&[FRONTEND], &[A, light]),
        service(&[FRONTEND], &[A, B]),
        drain("node/node-1"),
        drain("shop/b"),
        // Kept before it is opened.
        restore("shop/b"),
        restore("node/node-1"),
        named("cart", &["10.96.0.7:80"], &[A]),
        delete(),
    ] {
        assert_same(&mut steering, change);
    }
}

#[test]
fn it_is_kept_before_it_is_opened_and_closed_before_its_table() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[A, B])).unwrap();
    run(&mut steering, drain("shop/b")).unwrap();
    let mut plan =
        |change: Change| steering.change(&[change], Options { dry_run: true, ..Options::now() }).unwrap().plan;
    let place = |plan: &[String], word: &str| plan.iter().position(|line| line.contains(word)).unwrap();
    let restored = plan(restore("shop/b"));
    assert!(place(&restored, "stays") < place(&restored, "open"), "{restored:?}");
    let lighter = plan(service(&[FRONTEND], &[("a", A.1, A.2, 0), B]));
    assert!(place(&lighter, "closed") < place(&lighter, "table of"), "{lighter:?}");
    let target: Target = "shop/b".parse().unwrap();
    assert!(steering.state.is_zeroed(&target));
}
