//! Ejections with time moved by hand, through the real state.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::{Value, json};

use super::{
    BackendCounts, OutlierAction, OutlierDetector, OutlierDue, OutlierEvent, RecoveryProbe, SignalKind, SignalLimits,
    StateMachine, Streaks, Totals,
};
use crate::model::{
    BackendId, Change, Ejection, HealthReport, HealthUpdate, Rule, ServiceId, Stage, Stamp,
    tests::{World as Model, put},
};

pub const SECOND: u64 = 1000;

/// An agent in small: the state, the machine, and what the kernel would have counted.
pub struct World {
    pub model: Model,
    pub detector: OutlierDetector,
    /// Time in milliseconds.
    pub time: u64,
    pub counts: BTreeMap<BackendId, BackendCounts>,
    /// Since when backends have answered nothing: a time in ns.
    pub silent: BTreeMap<BackendId, u64>,
    pub limits: BTreeMap<BackendId, SignalLimits>,
    /// What a recovery probe of each backend finds; others answer.
    pub dead: BTreeMap<BackendId, String>,
    pub commands: Vec<Vec<HealthUpdate>>,
    pub ejected: Vec<Rule>,
    pub spared: Vec<String>,
    /// What was said and is not taken in yet, while the engine is kept busy.
    pub waiting: Option<Vec<HealthUpdate>>,
}

impl World {
    pub fn new(backends: usize, outlier: Value) -> Self {
        let mut world = Self {
            model: Model::new(),
            detector: OutlierDetector::default(),
            time: 0,
            counts: BTreeMap::new(),
            silent: BTreeMap::new(),
            limits: BTreeMap::new(),
            dead: BTreeMap::new(),
            commands: Vec::new(),
            ejected: Vec::new(),
            spared: Vec::new(),
            waiting: None,
        };
        world.put(backends, outlier);
        world
    }

    pub fn put(&mut self, backends: usize, outlier: Value) {
        let address = |n: usize| format!("10.{}.{}.{}:80", 1 + n / 60_000, n / 250 % 240, n % 250 + 1);
        let backends: Vec<Value> =
            (0..backends).map(|n| json!({"name": format!("n{n}"), "address": address(n)})).collect();
        let mut spec = json!({"frontends": ["10.0.0.1:80"], "backends": backends});
        if !outlier.is_null() {
            spec["outlier"] = outlier;
        }
        self.model.apply(&put("shop", spec));
        self.publish();
        self.act();
    }

    pub fn now(&self) -> Stamp {
        Stamp::test(self.time)
    }

    pub fn held(&self, id: BackendId) -> BackendCounts {
        let mut held = self.counts.get(&id).copied().unwrap_or_default();
        let since = self.silent.get(&id);
        held.streaks.unanswered_for = since.map(|since| Duration::from_nanos(self.now().ns - since));
        held
    }

    pub fn id(&self, backend: usize) -> BackendId {
        BackendId(self.model.id("shop", &format!("n{backend}")))
    }

    pub fn ejection(&self, backend: usize) -> Option<Ejection> {
        let service = self.model.service("shop");
        service.backends[backend].health.as_ref().and_then(|health| health.ejection.clone())
    }

    pub fn stage(&self, backend: usize) -> Option<Stage> {
        self.ejection(backend).map(|ejection| ejection.stage)
    }

    pub fn out(&self) -> usize {
        let service = self.model.service("shop");
        service.backends.iter().filter(|b| b.health.as_ref().is_some_and(|h| h.ejection.is_some())).count()
    }

    /// The machine as a new agent finds it.
    pub fn restart(&mut self) {
        self.detector = OutlierDetector::default();
        self.publish();
        self.act();
    }

    pub fn publish(&mut self) {
        let id = self.model.service("shop").id;
        let service = self.model.state.service_by_id(id).cloned();
        self.detector.handle(OutlierEvent::Published(id, service.as_ref()), self.now());
    }

    /// Somebody else says that a backend is not ejected.
    pub fn restore(&mut self, backend: usize) {
        let updates = vec![HealthUpdate { backend: self.id(backend), report: HealthReport::Ejection(None) }];
        self.model.apply(&Change::UpdateHealth { updates });
        self.publish();
        self.act();
    }

    /// Attempts of callers, one after the other: whether each succeeds.
    pub fn calls(&mut self, backend: usize, results: &[bool]) {
        let id = self.id(backend);
        for success in results {
            let held = self.counts.entry(id).or_default();
            if *success {
                held.totals.established += 1;
                held.streaks.failures = 0;
                self.silent.remove(&id);
                continue;
            }
            held.totals.failed += 1;
            held.streaks.failures += 1;
            self.signal(id, SignalKind::Failures);
        }
        self.act();
    }

    /// As the programs do it.
    fn signal(&mut self, id: BackendId, signal: SignalKind) {
        let (streaks, limits) = (self.held(id).streaks, self.limits[&id]);
        let is_due = match signal {
            SignalKind::Failures => limits.failures != 0 && streaks.failures.is_multiple_of(limits.failures),
            SignalKind::EarlyResets => {
                limits.failures != 0
                    && limits.early_resets != 0
                    && streaks.early_resets.is_multiple_of(limits.early_resets)
            }
            SignalKind::Unanswered => limits.failures != 0,
        };
        if is_due {
            self.detector.handle(OutlierEvent::Signalled(id, signal, streaks), self.now());
        }
    }

    pub fn early_resets(&mut self, backend: usize, count: u32) {
        let id = self.id(backend);
        for _ in 0..count {
            let held = self.counts.entry(id).or_default();
            held.totals.established += 1;
            held.totals.early_resets += 1;
            held.streaks.failures = 0;
            held.streaks.early_resets += 1;
            self.signal(id, SignalKind::EarlyResets);
        }
        self.act();
    }

    /// A connection that was picked `ago` ms before has sent its SYN again.
    pub fn unanswered(&mut self, backend: usize, ago: u64) {
        let (id, now) = (self.id(backend), self.now());
        self.counts.entry(id).or_default().streaks.failures += 1;
        self.silent.entry(id).or_insert(now.ns - ago * 1_000_000);
        self.signal(id, SignalKind::Unanswered);
        self.act();
    }

    /// Lets time pass, from one thing that is due to the next.
    pub fn pass(&mut self, millis: u64) {
        let end = self.time + millis;
        while let Some(due) = self.detector.poll_timeout() {
            // A thread that sleeps wakes a bit late, never early.
            let due = (due.saturating_sub(Stamp::test(0).ns)).div_ceil(1_000_000).max(self.time);
            if due > end {
                break;
            }
            self.time = due;
            self.detector.handle(OutlierEvent::Timeout, self.now());
            self.act();
            assert!(self.detector.poll_timeout().is_none_or(|next| next > self.now().ns), "it would spin");
        }
        self.time = end;
    }

    pub fn act(&mut self) {
        loop {
            let (mut updates, mut is_idle) = (Vec::new(), true);
            while let Some(action) = self.detector.next_action() {
                is_idle = false;
                match action {
                    OutlierAction::Count(wanted) => {
                        let counts = wanted.iter().map(|id| (*id, self.held(*id))).collect();
                        self.detector.handle(OutlierEvent::Counted(&counts), self.now());
                    }
                    OutlierAction::Update(update) => {
                        assert!(matches!(update.report, HealthReport::Ejection(_)));
                        updates.push(update);
                    }
                    OutlierAction::Ejected { rule, .. } => self.ejected.push(rule),
                    OutlierAction::Spared { backend, .. } => self.spared.push(backend.to_string()),
                    OutlierAction::Restart(id) => {
                        self.counts.entry(id).or_default().streaks = Streaks::default();
                        self.silent.remove(&id);
                    }
                    OutlierAction::Limit(id, limits) => drop(self.limits.insert(id, limits)),
                    OutlierAction::Probe(id, _) => {
                        let failed = |why: &String| RecoveryProbe::Failed(why.clone());
                        let probe = self.dead.get(&id).map_or(RecoveryProbe::Answered, failed);
                        self.detector.handle(OutlierEvent::Probed(id, &probe), self.now());
                    }
                }
            }
            if is_idle {
                return;
            }
            if updates.is_empty() {
                continue;
            }
            match &mut self.waiting {
                Some(waiting) => waiting.extend(updates),
                None => self.take_in(updates),
            }
        }
    }

    pub fn take_in(&mut self, updates: Vec<HealthUpdate>) {
        self.commands.push(updates.clone());
        self.model.apply(&Change::UpdateHealth { updates });
        self.publish();
    }
}

fn three() -> World {
    World::new(3, json!({}))
}

#[test]
fn three_failures_in_a_row_and_it_is_out_tried_on_trial_and_back() {
    let mut world = three();
    world.calls(0, &[false, false, true, false, false]);
    assert_eq!(world.stage(0), None);
    world.calls(0, &[false]);
    let ejection = world.ejection(0).unwrap();
    assert_eq!((ejection.stage, ejection.rule, ejection.times), (Stage::Out, Rule::ConsecutiveFailures, 1));
    assert_eq!((ejection.lasts.as_millis(), ejection.message.as_str()), (30_000, "3 attempts failed in a row"));
    assert_eq!(world.limits[&world.id(0)], SignalLimits::default());
    world.pass(29_999);
    assert_eq!(world.stage(0), Some(Stage::Out));
    world.pass(1);
    let trial = world.ejection(0).unwrap();
    assert_eq!((trial.stage, trial.lasts.as_millis()), (Stage::Trial, 10_000));
    assert_eq!(trial.message, "3 attempts failed in a row; tried again, it answered");
    assert_eq!(world.limits[&world.id(0)], SignalLimits { failures: 1, early_resets: 1 });
    world.pass(10_000);
    assert_eq!(world.stage(0), None);
    assert_eq!(world.limits[&world.id(0)], SignalLimits { failures: 3, early_resets: 5 });
    assert_eq!(world.ejected, [Rule::ConsecutiveFailures]);
}

#[test]
fn one_failure_on_trial_and_it_is_out_for_longer() {
    let mut world = three();
    world.calls(0, &[false; 3]);
    for (times, lasts) in
        [(2, 60), (3, 90), (4, 120), (5, 150), (6, 180), (7, 210), (8, 240), (9, 270), (10, 300), (10, 300)]
    {
        world.pass(u64::from(world.ejection(0).unwrap().lasts.as_millis()));
        assert_eq!(world.stage(0), Some(Stage::Trial));
        world.calls(0, &[true, false]);
        let ejection = world.ejection(0).unwrap();
        assert_eq!((ejection.stage, ejection.times), (Stage::Out, times));
        assert_eq!(u64::from(ejection.lasts.as_millis()), lasts * SECOND);
        assert_eq!(ejection.message, "on trial 1 attempt failed in a row");
    }
}

#[test]
fn it_is_not_tried_on_callers_while_a_connection_of_our_own_fails() {
    let mut world = three();
    let id = world.id(0);
    world.calls(0, &[false; 3]);
    world.dead.insert(id, "refused the connection".into());
    for times in 2..=5 {
        world.pass(30 * SECOND);
        let ejection = world.ejection(0).unwrap();
        assert_eq!((ejection.stage, ejection.times, ejection.lasts.as_millis()), (Stage::Out, times, 30_000));
        assert_eq!(ejection.message, "3 attempts failed in a row; tried again, it refused the connection");
    }
    world.dead.clear();
    world.pass(40 * SECOND);
    assert_eq!(world.stage(0), None);
    // The metric counts what rules have done.
    assert_eq!(world.ejected.len(), 1);
}

#[test]
fn what_was_on_its_way_does_not_count_twice() {
    let mut world = three();
    world.calls(0, &[false; 40]);
    assert_eq!((world.ejected.len(), world.commands.len()), (1, 1));
    world.pass(30 * SECOND);
    assert_eq!(world.stage(0), Some(Stage::Trial));
    world.pass(10 * SECOND);
    assert_eq!(world.stage(0), None);
}

#[test]
fn nothing_answered_for_the_time_and_it_is_out() {
    let mut world = three();
    world.unanswered(0, 1000);
    world.pass(999);
    assert_eq!(world.stage(0), None);
    world.pass(1);
    let ejection = world.ejection(0).unwrap();
    assert_eq!((ejection.rule, ejection.message.as_str()), (Rule::Unanswered, "no connection was answered for 2.0 s"));
}

#[test]
fn an_answer_in_time_keeps_it() {
    let mut world = three();
    world.unanswered(0, 1000);
    world.calls(0, &[true]);
    world.pass(500);
    world.unanswered(0, 0);
    world.pass(1999);
    assert_eq!(world.stage(0), None);
    world.pass(1);
    assert_eq!(world.stage(0), Some(Stage::Out));
}

#[test]
fn a_repeated_syn_on_trial_is_no_failure_yet() {
    let mut world = three();
    world.calls(0, &[false; 3]);
    world.pass(30 * SECOND);
    world.unanswered(0, 31_000);
    // It is older than the trial, and the backend answers it.
    assert_eq!(world.stage(0), Some(Stage::Out), "longer than the rule allows");
    let mut world = three();
    world.calls(0, &[false; 3]);
    world.pass(30 * SECOND);
    world.unanswered(0, 0);
    world.calls(0, &[true]);
    world.pass(10 * SECOND);
    assert_eq!(world.stage(0), None);
}

#[test]
fn early_resets_in_a_row_put_it_out() {
    let mut world = three();
    world.early_resets(0, 4);
    assert_eq!(world.stage(0), None);
    world.early_resets(0, 1);
    let ejection = world.ejection(0).unwrap();
    assert_eq!(ejection.rule, Rule::ConsecutiveEarlyResets);
    assert_eq!(ejection.message, "5 connections in a row reset before the first byte");
}

#[test]
fn rules_that_are_off_do_nothing() {
    let off =
        json!({"consecutiveFailures": 0, "consecutiveEarlyResets": 0, "unanswered": "0s", "failurePercentage": 0});
    let world = World::new(3, off);
    assert_eq!(world.limits[&world.id(0)], SignalLimits::default());
    let mut world = World::new(3, json!({"consecutiveFailures": 0, "consecutiveEarlyResets": 0}));
    assert_eq!(world.limits[&world.id(0)], SignalLimits { failures: u32::MAX, early_resets: 0 });
    world.calls(0, &[false; 50]);
    world.early_resets(0, 50);
    assert_eq!(world.stage(0), None);
    world.unanswered(0, 2500);
    assert_eq!(world.stage(0), Some(Stage::Out));
}

#[test]
fn windows_judge_what_was_added_since_the_last() {
    let mut world = World::new(3, json!({"consecutiveFailures": 0, "failurePercentage": 50}));
    // Counted before the service had rules, or by an agent before this one.
    let id = world.id(0);
    world.counts.entry(id).or_default().totals = Totals { failed: 5000, ..Totals::default() };
    world.pass(SECOND);
    let results: Vec<bool> = (0..120).map(|n| n % 5 == 0).collect();
    world.pass(10 * SECOND);
    assert_eq!(world.stage(0), None);
    world.calls(0, &results);
    world.pass(10 * SECOND);
    let ejection = world.ejection(0).unwrap();
    assert_eq!(ejection.rule, Rule::FailurePercentage);
    assert_eq!(ejection.message, "96 of 120 connections failed in 10s: 50 % or more");
    // What was counted before it was out does not put it out again.
    world.pass(60 * SECOND);
    assert_eq!((world.stage(0), world.ejected.len()), (None, 1));
}

#[test]
fn a_signal_that_was_lost_is_made_up_for_at_the_end_of_the_window() {
    let mut world = three();
    world.pass(SECOND);
    let id = world.id(0);
    world.counts.entry(id).or_default().streaks.failures = 7;
    world.pass(10 * SECOND);
    assert_eq!(world.ejection(0).unwrap().message, "7 attempts failed in a row");
}

#[test]
fn no_more_than_the_share_is_out_and_that_is_told_once() {
    for (backends, percent, most) in [(3, 50, 1), (1, 50, 0), (10, 25, 2), (4, 100, 4), (4, 0, 0)] {
        let mut world = World::new(backends, json!({"maxEjectionPercent": percent}));
        for _ in 0..3 {
            for backend in 0..backends {
                let id = world.id(backend);
                world.dead.insert(id, "refused the connection".into());
                world.calls(backend, &[false; 3]);
            }
            assert_eq!(world.out(), most);
            world.pass(20 * SECOND);
        }
        assert_eq!(world.spared.len(), usize::from(backends > most), "{backends} {percent}");
        world.dead.clear();
        world.pass(40 * SECOND);
        assert_eq!(world.out(), 0);
    }
}

#[test]
fn five_thousand_that_fail_at_once_are_few_commands() {
    let mut world = World::new(5000, json!({}));
    world.pass(SECOND);
    let ids: Vec<BackendId> = (0..5000).map(|n| world.id(n)).collect();
    let now = world.now();
    for id in &ids {
        world.dead.insert(*id, "did not answer".into());
        for failures in [3, 6] {
            let streaks = Streaks { failures, ..Streaks::default() };
            world.detector.handle(OutlierEvent::Signalled(*id, SignalKind::Failures, streaks), now);
        }
    }
    world.act();
    assert_eq!((world.out(), world.commands.len(), world.spared.len()), (2500, 1, 1));
    world.pass(25 * SECOND);
    assert_eq!(world.commands.len(), 1);
    // All that are tried at once fail at once here.
    world.pass(10 * SECOND);
    assert_eq!((world.out(), world.commands.len()), (2500, 2));
}

#[test]
fn one_in_five_for_ten_minutes_changes_little() {
    // Connections a second that the backend gets with its whole weight.
    for rate in [1, 4, 10, 100_u64] {
        let mut world = World::new(4, json!({}));
        let mut draw = 12_345_u64;
        let (mut changes, mut whole, mut last) = (0, 0, None);
        for step in 0..60 * SECOND {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let stage = world.stage(0);
            changes += u32::from(stage != last);
            last = stage;
            let per_second = match stage {
                None => rate * 100,
                Some(Stage::Trial) => rate * 2,
                Some(Stage::Out) => 0,
            };
            if step * per_second / 10_000 != (step + 1) * per_second / 10_000 {
                whole += u32::from(stage.is_none());
                world.calls(0, &[!(draw >> 33).is_multiple_of(5)]);
            }
            world.pass(10);
        }
        assert!(world.ejected.len() <= 6, "{rate}: {:?}", world.ejected);
        assert!(changes <= 16, "{rate}: {changes}");
        assert!(rate == 1 || u64::from(whole) < 300 * rate, "{rate}: {whole}");
    }
}

#[test]
fn ejections_long_ago_are_forgotten_step_by_step() {
    for (healthy, times) in [(299, 4), (300, 3), (899, 2), (900, 1), (90_000, 1)] {
        let mut world = three();
        world.calls(0, &[false; 3]);
        for lasts in [30, 60, 90] {
            world.pass(lasts * SECOND);
            if lasts < 90 {
                world.calls(0, &[false]);
            }
        }
        world.pass(10 * SECOND);
        assert_eq!(world.stage(0), None);
        world.pass(healthy * SECOND);
        world.calls(0, &[false; 3]);
        assert_eq!(world.ejection(0).unwrap().times, times, "after {healthy} s");
    }
}

#[test]
fn a_new_agent_goes_on_from_where_it_was() {
    let mut world = three();
    world.calls(0, &[false; 3]);
    world.pass(20 * SECOND);
    let before = world.ejection(0);
    world.restart();
    assert_eq!((world.ejection(0), world.commands.len()), (before, 1));
    world.calls(1, &[false; 3]);
    assert_eq!(world.stage(1), None, "one of three is out already");
    world.pass(9_999);
    assert_eq!(world.stage(0), Some(Stage::Out));
    world.pass(1);
    assert_eq!(world.stage(0), Some(Stage::Trial));
    world.pass(4 * SECOND);
    world.restart();
    assert_eq!(world.limits[&world.id(0)], SignalLimits { failures: 1, early_resets: 1 });
    world.pass(6 * SECOND);
    assert_eq!(world.stage(0), None);
}

#[test]
fn what_was_over_while_no_agent_ran_is_tried_at_once() {
    let mut world = three();
    world.calls(0, &[false; 3]);
    world.time += 3600 * SECOND;
    world.restart();
    world.pass(0);
    assert_eq!(world.stage(0), Some(Stage::Trial));
    world.calls(0, &[false]);
    assert_eq!(world.ejection(0).unwrap().times, 2);
}

#[test]
fn a_streak_that_grew_while_no_agent_ran_counts() {
    let mut world = three();
    let id = world.id(0);
    world.counts.entry(id).or_default().streaks.failures = 3;
    world.restart();
    world.pass(0);
    assert_eq!(world.stage(0), Some(Stage::Out));
}

#[test]
fn whoever_restores_it_is_believed() {
    let mut world = three();
    world.calls(0, &[false; 8]);
    world.restore(0);
    assert_eq!(world.stage(0), None);
    assert_eq!(world.counts[&world.id(0)].streaks, Streaks::default());
    world.pass(30 * SECOND);
    assert_eq!((world.stage(0), world.commands.len()), (None, 1));
    world.calls(0, &[false; 3]);
    assert_eq!(world.ejection(0).unwrap().times, 1);
    // It is restored while it is tried.
    world.pass(30 * SECOND);
    world.restore(0);
    assert_eq!((world.stage(0), world.out()), (None, 0));
    world.pass(60 * SECOND);
    assert_eq!(world.stage(0), None);
}

#[test]
fn a_publication_from_before_is_no_restore() {
    let mut world = three();
    world.waiting = Some(Vec::new());
    world.calls(0, &[false; 3]);
    for _ in 0..3 {
        world.publish();
        world.pass(SECOND);
    }
    assert_eq!(world.ejected.len(), 1);
    let updates = world.waiting.take().unwrap();
    assert_eq!(updates.len(), 1);
    world.take_in(updates);
    assert_eq!(world.stage(0), Some(Stage::Out));
    world.pass(10 * SECOND);
    assert_eq!(world.commands.len(), 1);
}

#[test]
fn an_ejection_is_told_once_though_it_is_never_published() {
    let mut world = three();
    world.waiting = Some(Vec::new());
    world.calls(0, &[false; 3]);
    for _ in 0..29 {
        world.publish();
        world.pass(SECOND);
    }
    assert_eq!(world.waiting.as_ref().unwrap().len(), 1);
    let updates = world.waiting.take().unwrap();
    world.take_in(updates);
    assert_eq!(world.stage(0), Some(Stage::Out));
    world.pass(SECOND);
    assert_eq!((world.stage(0), world.commands.len(), world.ejected.len()), (Some(Stage::Trial), 2, 1));
}

#[test]
fn a_busy_engine_may_take_several_at_once() {
    let mut world = World::new(3, json!({"baseEjectionTime": "100ms", "trial": "100ms"}));
    world.waiting = Some(Vec::new());
    world.calls(0, &[false; 3]);
    world.pass(SECOND);
    let updates = world.waiting.take().unwrap();
    assert_eq!(updates.len(), 3);
    world.take_in(updates);
    assert_eq!(world.stage(0), None);
    world.pass(60 * SECOND);
    assert_eq!((world.stage(0), world.commands.len()), (None, 1));
}

#[test]
fn a_document_without_rules_and_one_with_fewer_backends() {
    let mut world = World::new(8, json!({}));
    for backend in [0, 1, 2, 3] {
        world.calls(backend, &[false; 3]);
    }
    assert_eq!(world.out(), 4);
    world.put(5, json!({}));
    assert_eq!(world.out(), 2);
    world.put(5, Value::Null);
    assert_eq!(world.out(), 0);
    assert!(world.detector.is_idle());
    assert!(world.limits.iter().filter(|(id, _)| id.0 < 5).all(|(_, limits)| *limits == SignalLimits::default()));
    world.pass(60 * SECOND);
    assert_eq!(world.detector.poll_timeout(), None);
}

#[test]
fn a_backend_that_nobody_watches_is_told_to_keep_quiet() {
    let mut detector = OutlierDetector::default();
    let (now, streaks) = (Stamp::test(0), Streaks { failures: 3, ..Streaks::default() });
    detector.handle(OutlierEvent::Signalled(BackendId(9), SignalKind::Failures, streaks), now);
    assert_eq!(detector.actions(), [OutlierAction::Limit(BackendId(9), SignalLimits::default())]);
    detector.handle(OutlierEvent::Published(ServiceId(3), None), now);
    assert!(detector.is_idle() && detector.poll_timeout().is_none());
}

#[test]
fn a_trial_of_no_time_is_none() {
    let mut world = World::new(3, json!({"trial": "0s"}));
    world.calls(0, &[false; 3]);
    world.pass(30 * SECOND);
    assert_eq!((world.stage(0), world.commands.len()), (None, 2));
}

#[test]
fn the_clock_may_be_set() {
    let mut world = three();
    world.calls(0, &[false; 3]);
    let now = world.now();
    let set = Stamp { at: now.at - Duration::from_secs(86_400), ..now };
    let id = world.model.service("shop").id;
    let service: Option<Arc<_>> = world.model.state.service_by_id(id).cloned();
    let mut detector = OutlierDetector::default();
    detector.handle(OutlierEvent::Published(id, service.as_ref()), set);
    // A window is due at once; the end of the stage is due when it was.
    detector.handle(OutlierEvent::Counted(&BTreeMap::new()), set);
    let ends = Stamp { at: set.at, ..Stamp::test(30_000) };
    assert!(detector.wanted(ends).len() >= 3);
    let stage = OutlierDue::Stage(world.id(0));
    assert!(detector.agenda.timers.due(ends.ns).any(|due| due == stage));
    assert!(detector.agenda.timers.due(ends.ns - 1).all(|due| due != stage));
}
