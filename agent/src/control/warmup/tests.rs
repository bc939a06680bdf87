//! Time is moved by hand.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    Change, HealthReport, HealthUpdate, Limits, Origin, Span, Target, Unready, Zero, document::ServiceDocument,
    span::Decimal,
};

const LIMITS: Limits = Limits { services: 8, backends: 64, nodes: 8, frontends: 8 };

fn service(warmup: Value, backends: &[(&str, &str)]) -> Change {
    let backends: Vec<Value> = (1..)
        .zip(backends)
        .map(|(number, (name, node))| json!({"name": name, "node": node, "address": format!("10.0.0.{number}:80")}))
        .collect();
    let document: ServiceDocument = serde_json::from_value(json!({
        "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "shop"},
        "spec": {"frontends": ["10.96.0.1:80"], "warmup": warmup, "backends": backends},
    }))
    .unwrap();
    Change::PutService { document: Box::new(document), origin: Origin::Api, if_match: None }
}

/// A state and its ramps, moved by changes and by time.
struct World {
    state: State,
    ramps: Ramps,
    now: u64,
}

impl World {
    fn new() -> Self {
        Self { state: State::new(LIMITS), ramps: Ramps::default(), now: 0 }
    }

    fn apply(&mut self, change: Change) {
        let applied = self.state.apply(&change, Stamp::test(self.now).at).unwrap();
        let (before, after, touched) = (&self.state, &applied.state, &applied.touched);
        self.ramps.handle(WarmupEvent::Changed { before, after, touched }, Stamp::test(self.now));
        self.ramps.actions();
        self.state = applied.state;
    }

    fn pass(&mut self, seconds: u64) {
        self.now += seconds * 1000;
        self.ramps.handle(WarmupEvent::Timeout(&self.state), Stamp::test(self.now));
        self.ramps.actions();
    }

    fn id(&self, name: &str) -> BackendId {
        let service = self.state.service("shop").unwrap();
        service.backends.iter().find(|backend| backend.name == *name).unwrap().id
    }

    fn part(&self, name: &str) -> u32 {
        self.ramps.part(self.state.backend(self.id(name)).unwrap().1)
    }

    fn zero(&mut self, target: &str) {
        let zero = Zero {
            owner: String::new(),
            reason: String::new(),
            since: Stamp::test(self.now).at,
            expires: None,
            drain: None,
        };
        self.apply(Change::Zero { target: target.parse().unwrap(), zero, drain: None, force: true });
    }

    fn restore(&mut self, target: &str) {
        self.apply(Change::Restore { target: target.parse::<Target>().unwrap() });
    }

    fn probe(&mut self, name: &str, ready: bool) {
        let unready = Unready {
            since: Stamp::test(self.now),
            starting: false,
            asked: None,
            message: "connection refused".to_owned(),
        };
        let report = HealthReport::Probe { reason: (!ready).then_some(unready), asked: None };
        self.apply(Change::UpdateHealth { updates: vec![HealthUpdate { backend: self.id(name), report }] });
    }
}

#[test]
fn a_line_is_dubbos_formula_in_steps() {
    let warmup = Warmup { duration: Span::seconds(100), ..Warmup::default() };
    for (seconds, part) in [(0, 10), (1, 10), (2, 20), (3, 20), (50, 500), (99, 980), (100, 1000), (1000, 1000)] {
        assert_eq!(warmup.part(Duration::from_secs(seconds)), part, "{seconds}");
    }
}

#[test]
fn a_power_is_slow_first_and_starts_after_the_delay() {
    let warmup = Warmup {
        delay: Span::seconds(10),
        duration: Span::seconds(100),
        curve: Curve::Power,
        exponent: Decimal::thousandths(3000),
        minimum_percent: 5,
        ..Warmup::default()
    };
    for (seconds, part) in [(0, 50), (10, 50), (60, 120), (90, 500), (109, 960), (110, 1000)] {
        assert_eq!(warmup.part(Duration::from_secs(seconds)), part, "{seconds}");
    }
}

#[test]
fn what_is_added_restored_or_ready_again_warms_up() {
    let mut world = World::new();
    world.apply(service(json!({"duration": "100s"}), &[("a", "n1"), ("b", "n2")]));
    assert_eq!((world.part("a"), world.part("b")), (10, 10));
    world.pass(50);
    assert_eq!(world.part("a"), 500);
    world.pass(60);
    assert_eq!((world.part("a"), world.ramps.poll_timeout()), (1000, None));
    for (out, back) in [
        (World::zero as fn(&mut World, &str), World::restore as fn(&mut World, &str)),
        (|world, _| world.zero("node/n1"), |world, _| world.restore("node/n1")),
        (|world, _| world.probe("a", false), |world, _| world.probe("a", true)),
    ] {
        out(&mut world, "shop/a");
        world.pass(5);
        back(&mut world, "shop/a");
        assert_eq!((world.part("a"), world.part("b")), (10, 1000));
        world.pass(100);
        assert_eq!(world.part("a"), 1000);
    }
}

#[test]
fn a_change_that_opens_nothing_leaves_a_ramp_alone() {
    let mut world = World::new();
    world.apply(service(json!({"duration": "100s"}), &[("a", "n1")]));
    world.pass(50);
    world.apply(service(json!({"duration": "100s"}), &[("a", "n1"), ("b", "n2")]));
    assert_eq!((world.part("a"), world.part("b")), (500, 10));
    // Other settings count at once, from the same start.
    world.apply(service(json!({"duration": "200s"}), &[("a", "n1"), ("b", "n2")]));
    assert_eq!(world.part("a"), 240);
    world.apply(service(Value::Null, &[("a", "n1"), ("b", "n2")]));
    assert_eq!((world.part("a"), world.ramps.poll_timeout()), (1000, None));
}

#[test]
fn a_process_that_goes_on_is_not_cold_after_a_zero() {
    let mut world = World::new();
    world.apply(service(json!({"duration": "100s", "start": "process"}), &[("a", "n1"), ("b", "n2")]));
    world.pass(40);
    world.zero("shop/a");
    world.pass(20);
    world.restore("shop/a");
    assert_eq!(world.part("a"), 600, "its process went on warming up");
    world.pass(60);
    world.zero("shop/a");
    world.restore("shop/a");
    assert_eq!(world.part("a"), 1000);
    world.probe("a", false);
    world.probe("a", true);
    assert_eq!(world.part("a"), 10, "another process");
}

#[test]
fn what_is_restored_and_probed_warms_up_from_its_first_success() {
    for (start, failed, part) in
        [("ready", false, 10), ("ready", true, 10), ("process", false, 1000), ("process", true, 10)]
    {
        let mut world = World::new();
        let Change::PutService { mut document, origin, if_match } =
            service(json!({"duration": "100s", "start": start}), &[("a", "n1"), ("b", "n2")])
        else {
            unreachable!()
        };
        document.spec.readiness = serde_json::from_value(json!({"kind": "http"})).unwrap();
        world.apply(Change::PutService { document, origin, if_match });
        world.probe("a", true);
        world.pass(200);
        world.zero("node/n1");
        world.pass(1);
        world.restore("node/n1");
        world.pass(50);
        let asked =
            world.state.backend(world.id("a")).unwrap().1.health.as_ref().unwrap().probe.as_ref().unwrap().asked;
        assert!(asked.is_some());
        let told = |world: &mut World, reason: Option<Unready>| {
            let update = HealthUpdate { backend: world.id("a"), report: HealthReport::Probe { reason, asked } };
            world.apply(Change::UpdateHealth { updates: vec![update] });
        };
        if failed {
            let since = Stamp::test(world.now);
            told(&mut world, Some(Unready { since, starting: true, asked, message: "connection refused".to_owned() }));
        }
        told(&mut world, None);
        assert_eq!(world.part("a"), part, "{start}, failed: {failed}");
    }
}

#[test]
fn a_removed_backend_leaves_no_ramp() {
    let mut world = World::new();
    world.apply(service(json!({}), &[("a", "n1"), ("b", "n2")]));
    world.apply(service(json!({}), &[("a", "n1")]));
    world.apply(Change::DeleteService { service: "shop".parse().unwrap(), if_match: None });
    assert_eq!(world.ramps.poll_timeout(), None);
}

#[test]
fn a_step_that_comes_late_is_made_up_for() {
    let mut world = World::new();
    world.apply(service(json!({"duration": "100s"}), &[("a", "n1")]));
    let id = world.id("a");
    // A clock that stands still at the very time of a step makes no second one.
    let due = world.ramps.poll_timeout().unwrap();
    let now = Stamp { ns: due, ..Stamp::test(0) };
    world.ramps.handle(WarmupEvent::Timeout(&world.state), now);
    assert_eq!(world.ramps.actions(), [WarmupAction::Stepped(id)]);
    assert!(world.ramps.poll_timeout().unwrap() > due);
    world.pass(1000);
    assert_eq!(world.part("a"), 1000);
}

proptest! {
    #[test]
    fn ramps_are_monotone_and_no_step_is_larger_than_two_percent(
        delay in 0..10_000_u32,
        duration in 100..200_000_u32,
        exponent in 1000..10_000_u32,
        power in any::<bool>(),
        minimum in 1..=100_u8,
    ) {
        let warmup = Warmup {
            delay: Span::millis(delay),
            duration: Span::millis(duration),
            curve: if power { Curve::Power } else { Curve::Linear },
            exponent: Decimal::thousandths(exponent),
            minimum_percent: minimum,
            ..Warmup::default()
        };
        let (mut part, mut steps) = (warmup.part(Duration::ZERO), 0);
        prop_assert!(part >= u32::from(minimum) * 10);
        while let Some(next) = warmup.next_step(part) {
            let after = warmup.part(next);
            prop_assert!(after > part && after - part <= STEP, "{} then {}", part, after);
            let before = warmup.part(next.saturating_sub(Duration::from_millis(1)));
            prop_assert!(before <= after);
            (part, steps) = (after, steps + 1);
        }
        prop_assert!(part == WHOLE && steps <= 50);
        prop_assert_eq!(warmup.part(Duration::from_millis(u64::from(delay + duration))), WHOLE);
    }
}
