//! Random histories of calls, pauses, restarts and changes of the document.

use proptest::prelude::*;
use serde_json::json;

use super::tests::World;
use crate::model::Stage;

const BACKENDS: usize = 6;

#[derive(Clone, Debug)]
enum Happening {
    Calls(usize, Vec<bool>),
    EarlyResets(usize, u32),
    Unanswered(usize),
    Pass(u64),
    Dies(usize),
    Heals(usize),
    Restore(usize),
    Restart,
    Document { backends: usize, percent: u32 },
}

fn happening() -> impl Strategy<Value = Happening> {
    let backend = 0..BACKENDS;
    prop_oneof![
        6 => (backend.clone(), prop::collection::vec(any::<bool>(), 1..8)).prop_map(|(b, r)| Happening::Calls(b, r)),
        3 => backend.clone().prop_map(|b| Happening::Calls(b, vec![false; 4])),
        2 => (backend.clone(), 1..8_u32).prop_map(|(b, n)| Happening::EarlyResets(b, n)),
        2 => backend.clone().prop_map(Happening::Unanswered),
        5 => (0..60_000_u64).prop_map(Happening::Pass),
        2 => backend.clone().prop_map(Happening::Dies),
        2 => backend.clone().prop_map(Happening::Heals),
        1 => backend.prop_map(Happening::Restore),
        1 => Just(Happening::Restart),
        1 => (2..=BACKENDS, 0..=100_u32).prop_map(|(backends, percent)| Happening::Document { backends, percent }),
    ]
}

fn rules(percent: u32) -> serde_json::Value {
    json!({"maxEjectionPercent": percent, "baseEjectionTime": "7s", "maxEjectionTime": "40s", "minimumVolume": 5})
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 256 } else { 5000 }))]

    #[test]
    fn whatever_happens(events in prop::collection::vec(happening(), 1..80)) {
        let (mut backends, mut percent) = (BACKENDS, 50);
        let mut world = World::new(backends, rules(percent));
        for event in events {
            match event {
                Happening::Calls(b, results) => if b < backends { world.calls(b, &results) },
                Happening::EarlyResets(b, count) => if b < backends { world.early_resets(b, count) },
                Happening::Unanswered(b) => if b < backends { world.unanswered(b, 1000) },
                Happening::Pass(millis) => world.pass(millis),
                Happening::Dies(b) => if b < backends {
                    let id = world.id(b);
                    world.dead.insert(id, "refused the connection".into());
                },
                Happening::Heals(b) => if b < backends {
                    let id = world.id(b);
                    world.dead.remove(&id);
                },
                Happening::Restore(b) => if b < backends { world.restore(b) },
                Happening::Restart => world.restart(),
                Happening::Document { backends: new, percent: share } => {
                    (backends, percent) = (new, share);
                    world.put(backends, rules(percent));
                }
            }
            prop_assert!(world.out() <= backends * percent as usize / 100, "{} of {backends} are out", world.out());
            for backend in 0..backends {
                if let Some(ejection) = world.ejection(backend) {
                    prop_assert!((1..=6).contains(&ejection.times), "{ejection:?}");
                    let (least, most) = if ejection.stage == Stage::Out { (7_000, 40_000) } else { (10_000, 10_000) };
                    prop_assert!((least..=most).contains(&ejection.lasts.as_millis()), "{ejection:?}");
                    prop_assert!(ejection.since.ns <= world.now().ns);
                }
                let health = world.model.service("shop").backends[backend].health.clone();
                prop_assert!(health.is_none_or(|health| health.probe.is_none() && health.report.is_none()));
            }
        }
        // All is well from here on: everybody is back.
        world.dead.clear();
        for held in world.counts.values_mut() {
            held.streaks = super::Streaks::default();
        }
        world.silent.clear();
        // The window that is on may put one out again.
        world.pass(10_000 + 40_000 + 10_000 + 1_000);
        prop_assert_eq!(world.out(), 0);
        prop_assert!(world.model.service("shop").backends.iter().all(|backend| backend.health.is_none()));
    }
}
