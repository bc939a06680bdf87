use std::{
    collections::BTreeSet,
    sync::mpsc::{Receiver, channel},
};

use serde_json::{Value, json};

use super::*;
use crate::{
    model::{Change, Report, Target, tests::World},
    view::published::AgentReadiness,
};

/// Long, for a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);

/// A thread that probes, and the state that it follows, changed by hand.
struct Probed {
    world: World,
    sender: watch::Sender<Arc<Published>>,
    updates: Receiver<Command>,
    instruments: Arc<Instruments>,
}

fn published(world: &World) -> Arc<Published> {
    Arc::new(Published {
        state: world.state.clone(),
        programmed: imbl::OrdMap::new(),
        zeros: imbl::OrdMap::new(),
        ramps: Default::default(),
        problems: imbl::OrdMap::new(),
        ready: AgentReadiness::Ready,
        missing: Default::default(),
        history: crate::view::history::History::default(),
    })
}

impl Probed {
    fn new(probing: Probing) -> Self {
        let world = World::new();
        let (sender, receiver) = watch::channel(published(&world));
        let (commands, updates) = channel();
        let instruments = Arc::new(Instruments::new().unwrap());
        let (published, instruments_too) = (receiver, instruments.clone());
        spawn(HealthScheduler { published, commands, instruments: instruments_too, probing, mark: 0 }).unwrap();
        Self { world, sender, updates, instruments }
    }

    fn put(&mut self, readiness: Value, addresses: impl Iterator<Item = String>) {
        let backends: Vec<_> = addresses
            .enumerate()
            .map(|(number, address)| json!({"name": format!("b{number}"), "node": "n1", "address": address}))
            .collect();
        self.world.put("s", json!({"frontends": ["10.0.0.1:80"], "readiness": readiness, "backends": backends}));
        self.publish();
    }

    fn publish(&self) {
        self.sender.send_replace(published(&self.world));
    }

    /// The next change, as the engine would get it.
    fn next(&self) -> Vec<HealthUpdate> {
        match self.updates.recv_timeout(LIMIT).expect("an update") {
            Command::UpdateHealth(updates) => updates,
            _ => panic!("something else than updates"),
        }
    }

    fn apply(&mut self, updates: Vec<HealthUpdate>) {
        self.world.apply(&Change::UpdateHealth { updates });
        self.publish();
    }

    fn probes(&self) -> f64 {
        let text = self.instruments.text().unwrap();
        let lines = text.lines().filter(|line| line.starts_with("sluice_probes_total"));
        lines.filter_map(|line| line.split(' ').next_back()?.parse::<f64>().ok()).sum()
    }
}

fn usual() -> Probing {
    Probing { in_flight: 64, probers: 3, ..Probing::default() }
}

/// Addresses where nobody listens.
fn nobody(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("127.9.{}.{}:9", number / 250, number % 250 + 1))
}

#[test]
fn thousands_that_fail_together_are_a_few_changes() {
    const MANY: usize = 5000;
    let mut probed = Probed::new(usual());
    let start = Instant::now();
    probed.put(json!({"kind": "tcp", "period": "2s"}), nobody(MANY));
    let (mut failed, mut changes) = (BTreeSet::new(), 0);
    while failed.len() < MANY {
        let updates = probed.next();
        for HealthUpdate { backend, report } in &updates {
            let HealthReport::Probe { reason: Some(unready), .. } = report else { panic!("{report:?}") };
            assert_eq!((unready.starting, unready.message.as_str()), (true, "connection refused"));
            failed.insert(*backend);
        }
        changes += 1;
        probed.apply(updates);
    }
    // One for every quarter of a second at most, and the first.
    let most = start.elapsed().as_millis() / 200 + 3;
    assert!(changes <= most, "{changes} changes in {:?}", start.elapsed());
}

#[test]
fn what_is_not_probed_any_more_is_left_alone() {
    let mut probed = Probed::new(usual());
    probed.put(json!({"kind": "tcp", "period": "100ms"}), nobody(3));
    let mut said = 0;
    while said < 3 {
        let updates = probed.next();
        said += updates.len();
        probed.apply(updates);
    }
    probed.world.apply(&Change::DeleteService { service: "s".parse().unwrap(), if_match: None });
    probed.publish();
    // Probes that are under way end; others do not begin.
    thread::sleep(Duration::from_millis(500));
    let before = probed.probes();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(probed.probes(), before);
}

/// A scheduler without its thread, and the state that it follows.
fn scheduler() -> (Scheduler, World, watch::Sender<Arc<Published>>) {
    let world = World::new();
    let (sender, receiver) = watch::channel(published(&world));
    let instruments = Arc::new(Instruments::new().unwrap());
    let commands = channel().0;
    let worker = HealthScheduler { published: receiver, commands, instruments, probing: usual(), mark: 0 };
    (Scheduler::new(worker, mpsc::unbounded_channel().0), world, sender)
}

#[test]
fn an_update_is_sent_once_though_it_is_never_published() {
    let (mut scheduler, mut world, sender) = scheduler();
    let service = |weight: u32| {
        let backends = json!([{"name": "a", "node": "n1", "address": "127.9.0.1:9", "weight": weight}]);
        json!({"frontends": ["10.0.0.1:80"], "readiness": {"kind": "tcp", "period": "1h"}, "backends": backends})
    };
    world.put("s", service(1));
    sender.send_replace(published(&world));
    scheduler.follow();
    let backend = BackendId(world.id("s", "a"));
    let epoch = scheduler.probed[&backend].epoch;
    for weight in 2..10 {
        // The connection is refused within connect().
        scheduler.start(backend, epoch);
        assert_eq!(scheduler.outbox.len(), 1, "{:?}", scheduler.outbox);
        // Other changes are published, and this one is not.
        world.put("s", service(weight));
        sender.send_replace(published(&world));
        scheduler.follow();
    }
    let late = Instant::now() + Duration::from_secs(24 * 3600);
    let wakes: BTreeSet<Wake> = scheduler.timers.due(late).map(|due| due.wake).collect();
    assert_eq!(wakes, BTreeSet::from([Wake::Probe]), "nothing waits to be told again");
    // Once it is published, what came before is no news either; what somebody else makes of it is.
    let updates = std::mem::take(&mut scheduler.outbox);
    world.apply(&Change::UpdateHealth { updates: updates.clone() });
    sender.send_replace(published(&world));
    scheduler.follow();
    scheduler.start(backend, epoch);
    assert_eq!(scheduler.outbox, []);
    let ready = HealthUpdate { backend, report: HealthReport::Probe { reason: None, asked: None } };
    world.apply(&Change::UpdateHealth { updates: vec![ready] });
    sender.send_replace(published(&world));
    scheduler.follow();
    for _ in 0..3 {
        scheduler.start(backend, epoch);
    }
    assert!(matches!(
        &scheduler.outbox[..],
        [HealthUpdate { report: HealthReport::Probe { reason: Some(_), .. }, .. }]
    ));
    // A document that asks for no probes ends them.
    let mut without = service(1);
    without["readiness"] = Value::Null;
    world.put("s", without);
    sender.send_replace(published(&world));
    scheduler.follow();
    assert!(scheduler.probed.is_empty());
}

#[test]
fn the_end_of_a_lease_and_of_a_probers_turn_are_told_once() {
    let (mut scheduler, mut world, sender) = scheduler();
    scheduler.probing.peers = vec!["n2".into()];
    let service = |weight: u32| {
        let readiness = json!({"kind": "tcp", "from": "peers"});
        let backends = json!([{"name": "a", "address": "127.9.0.1:9", "weight": weight}]);
        json!({"frontends": ["10.0.0.1:80"], "readiness": readiness, "backends": backends})
    };
    world.put("s", service(1));
    let backend = BackendId(world.id("s", "a"));
    let (state, lease) = (crate::model::Reported::Ready, Some(crate::model::Span::millis(1)));
    let report = Report { since: clock::stamp(), state, message: String::new(), lease, started: None };
    let update = |report: Report| HealthUpdate { backend, report: HealthReport::Report(Some(report)) };
    world.apply(&Change::UpdateHealth { updates: vec![update(report.clone())] });
    thread::sleep(Duration::from_millis(2));
    for weight in 2..10 {
        sender.send_replace(published(&world));
        scheduler.follow();
        while let Some((_, due)) = scheduler.timers.take_due(Instant::now()) {
            scheduler.check_lease(due.backend, due.epoch);
        }
        world.put("s", service(weight));
    }
    let ready = HealthUpdate { backend, report: HealthReport::Probe { reason: None, asked: None } };
    assert_eq!(scheduler.outbox, [ready, update(report.lapsed())]);
    // Renewed, and not in time again.
    let again = Report { since: report.since.after(Duration::from_millis(1)), ..report };
    world.apply(&Change::UpdateHealth { updates: vec![update(again.clone())] });
    sender.send_replace(published(&world));
    scheduler.follow();
    while let Some((_, due)) = scheduler.timers.take_due(Instant::now()) {
        scheduler.check_lease(due.backend, due.epoch);
    }
    assert_eq!(scheduler.outbox.last(), Some(&update(again.lapsed())));
}

#[test]
fn a_restore_begins_anew_and_forgets_probes_that_are_under_way() {
    let (mut scheduler, mut world, sender) = scheduler();
    let backends = json!([{"name": "a", "node": "n1", "address": "127.9.0.1:9"}]);
    let readiness = json!({"kind": "http", "period": "1h"});
    world.put("s", json!({"frontends": ["10.0.0.1:80"], "readiness": readiness, "backends": backends}));
    let backend = BackendId(world.id("s", "a"));
    let publish = |world: &World, scheduler: &mut Scheduler| {
        sender.send_replace(published(world));
        scheduler.follow();
        let due = scheduler.timers.next().unwrap();
        (scheduler.probed[&backend].epoch, due <= Instant::now() + Duration::from_secs(1))
    };
    let end = |epoch| {
        let (kind, started) = (ReadinessKind::Http, Instant::now());
        EndedProbe { backend, epoch, kind, started, found: Ok(()) }
    };
    let (first, _) = publish(&world, &mut scheduler);
    scheduler.found(end(first));
    world.apply(&Change::UpdateHealth { updates: std::mem::take(&mut scheduler.outbox) });
    assert_eq!(publish(&world, &mut scheduler).0, first);
    world.apply(&crate::model::tests::force("node/n1"));
    assert_eq!(publish(&world, &mut scheduler).0, first, "a zero asks for nothing");
    world.apply(&crate::model::tests::restore("node/n1"));
    let (second, at_once) = publish(&world, &mut scheduler);
    assert!(second != first && at_once, "the first probe does not wait for its period");
    scheduler.found(end(first));
    assert_eq!(scheduler.outbox, [], "this one began before the restore");
    assert_eq!(publish(&world, &mut scheduler).0, second, "it is asked for once");
    scheduler.found(end(second));
    let asked = Some(world.now);
    assert_eq!(scheduler.outbox, [HealthUpdate { backend, report: HealthReport::Probe { reason: None, asked } }]);
}

#[test]
fn an_agent_that_is_not_to_probe_clears_what_every_restore_asks() {
    let (mut scheduler, mut world, sender) = scheduler();
    let backends = json!([{"name": "a", "node": "n1", "address": "127.9.0.1:9"}]);
    let readiness = json!({"kind": "tcp", "from": "node"});
    world.put("s", json!({"frontends": ["10.0.0.1:80"], "readiness": readiness, "backends": backends}));
    let backend = BackendId(world.id("s", "a"));
    for second in 0..3 {
        sender.send_replace(published(&world));
        scheduler.follow();
        let asked = (second > 0).then_some(world.now);
        let update = HealthUpdate { backend, report: HealthReport::Probe { reason: None, asked } };
        assert_eq!(scheduler.outbox, std::slice::from_ref(&update), "{second}");
        world.apply(&Change::UpdateHealth { updates: std::mem::take(&mut scheduler.outbox) });
        // The state in between is not looked at.
        world.now = crate::model::tests::at(second + 1);
        world.apply(&crate::model::tests::force("node/n1"));
        world.apply(&crate::model::tests::restore("node/n1"));
    }
}

#[test]
fn an_agent_that_is_not_to_probe_says_ready_and_never_looks() {
    for (node, from) in [(None, "node"), (Some("n2"), "node"), (Some("n2"), "peers")] {
        let node = node.map(str::to_owned);
        let mut probed = Probed::new(Probing { node, peers: vec!["n1".into()], ..usual() });
        probed.put(json!({"kind": "tcp", "period": "100ms", "from": from}), nobody(1));
        let updates = probed.next();
        assert!(
            updates.iter().all(|update| update.report == HealthReport::Probe { reason: None, asked: None }),
            "{updates:?}"
        );
        probed.apply(updates);
        thread::sleep(Duration::from_millis(300));
        assert_eq!(probed.probes(), 0.0);
    }
}

#[test]
fn a_lease_lapses_unless_it_is_renewed() {
    let mut probed = Probed::new(usual());
    probed.world.put("s", json!({"frontends": ["10.0.0.1:80"], "backends": [{"name": "b", "address": "127.0.0.1:9"}]}));
    let (target, id) = ("s/b".parse::<Target>().unwrap(), BackendId(probed.world.id("s", "b")));
    assert!(matches!(target, Target::Backend { .. }));
    let report = |millis| Report {
        since: clock::stamp(),
        state: crate::model::Reported::Ready,
        message: String::new(),
        lease: Some(crate::model::Span::millis(millis)),
        started: None,
    };
    let find = |report| vec![HealthUpdate { backend: id, report: HealthReport::Report(Some(report)) }];
    probed.apply(find(report(3_600_000)));
    let short = report(200);
    probed.apply(find(short.clone()));
    let lapsed = probed.next();
    assert_eq!(lapsed, find(short.lapsed()));
    // Renewed before that arrives.
    let renewed = report(3_600_000);
    probed.apply(find(renewed.clone()));
    probed.apply(lapsed);
    let (_, backend) = probed.world.state.backend(id).unwrap();
    assert_eq!(backend.health.as_ref().unwrap().report.as_ref(), Some(&renewed));
}

/// Prints what a probe costs: `cargo test --release -p sluice cost_of -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_probe() {
    use nix::sys::resource::{UsageWho, getrusage};
    const MANY: u16 = 10_000;
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let used = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let of = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        (of(usage.user_time()), of(usage.system_time()))
    };
    let mut probed = Probed::new(Probing { in_flight: 1024, ..usual() });
    let addresses = (0..MANY).map(|number| format!("127.8.{}.{}:{port}", number / 250, number % 250 + 1));
    probed.put(json!({"kind": "tcp", "period": "5s"}), addresses);
    let until = |probes: f64| {
        while probed.probes() < probes {
            thread::sleep(Duration::from_millis(100));
        }
    };
    // The first round has its own price.
    until(f64::from(MANY));
    while probed.updates.recv_timeout(Duration::from_secs(1)).is_ok() {}
    let ((user, system), probes, start) = (used(), probed.probes(), Instant::now());
    until(probes + 2.0 * f64::from(MANY));
    let ((user_now, system_now), probes) = (used(), probed.probes() - probes);
    let (user, system, took) = (user_now - user, system_now - system, start.elapsed().as_secs_f64());
    println!(
        "{probes} probes in {took:.1} s: {:.1} us each ({:.1} user, {:.1} kernel), {:.1} % of a processor",
        (user + system) / probes * 1e6,
        user / probes * 1e6,
        system / probes * 1e6,
        (user + system) / took * 100.0
    );
}
