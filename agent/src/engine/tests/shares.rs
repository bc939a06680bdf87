//! Shares that are observed, over changes of the table.

use std::time::Duration;

use super::*;
use crate::{kernel::gauges::UNUSED, view::share::WindowPicks};

/// A beside B of this weight, which warms up for a second.
fn warming(weight: u32) -> Change {
    let change = service(&[FRONTEND], &[("a", A.1, A.2, 100), ("b", B.1, B.2, weight)]);
    let Change::PutService { mut document, origin, if_match } = change else { unreachable!() };
    document.spec.warmup = serde_json::from_value(serde_json::json!({"duration": "1s"})).unwrap();
    Change::PutService { document, origin, if_match }
}

#[test]
fn observed_shares_go_on_over_the_steps_of_a_warm_up() {
    let dir = TempDir::new().unwrap();
    let mut steering = steering(&dir, Fake::default());
    run(&mut steering, service(&[FRONTEND], &[("a", A.1, A.2, 100)])).unwrap();
    run(&mut steering, warming(100)).unwrap();
    let shown = |steering: &Engine<Fake>| steering.view.values().next().unwrap().clone();
    let (mut picked, mut tables) = ([0_u64; 2], BTreeSet::new());
    let began = Instant::now();
    while shown(&steering).backends[1].programmed_share < 0.5 {
        let table = shown(&steering);
        tables.insert(table.since);
        for (count, backend) in picked.iter_mut().zip(&table.backends) {
            *count += (100.0 * backend.programmed_share).round() as u64;
            steering.machine.counters.entry(backend.id.0).or_insert(UNUSED).picked = *count;
        }
        std::thread::sleep(Duration::from_millis(5));
        steering.work_at_leisure();
        let picks = WindowPicks::of(shown(&steering).backends.iter().zip(picked));
        let total = WindowPicks::total(&picks);
        assert!(picked.iter().sum::<u64>() < 1000 || total > 999.0, "{total} after {picked:?}");
        for WindowPicks { made, expected } in picks {
            assert!((made - expected).abs() < 0.02 * total + 1.0, "{made} of {total}, and {expected} expected");
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it is still warming up");
    }
    assert!(tables.len() > 10, "{} steps", tables.len());
    // Another document is something else to observe.
    run(&mut steering, warming(50)).unwrap();
    assert_eq!(WindowPicks::total(&WindowPicks::of(shown(&steering).backends.iter().zip(picked))), 0.0);
}
