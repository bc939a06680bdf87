//! The thread's turns with a kernel of a few numbers.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, Sender},
    },
    time::Duration,
};

use serde_json::json;

use super::{OutlierLoop, OutlierMessage, StreakSource, follow, recovery_probe};
use crate::{
    control::{
        StateMachine,
        outlier::{BackendCounts, OutlierDetector, RecoveryProbe, SignalKind, SignalLimits, Streaks},
    },
    engine::{client::Command, workers::changes::ServiceChanges},
    host::clock,
    model::{
        BackendId, Change, HealthReport, HealthUpdate, Stage, Stamp,
        tests::{World, put},
    },
    telemetry::Instruments,
};

#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<BTreeMap<BackendId, (SignalLimits, BackendCounts)>>>);

impl StreakSource for Numbers {
    fn wait(&mut self, _: Option<Duration>) -> io::Result<Vec<(BackendId, SignalKind, Streaks)>> {
        Ok(Vec::new())
    }

    fn count(&self, backends: &[BackendId]) -> anyhow::Result<Vec<BackendCounts>> {
        let held = self.0.lock().unwrap();
        Ok(backends.iter().map(|id| held.get(id).map(|(_, counts)| *counts).unwrap_or_default()).collect())
    }

    fn restart(&self, backend: BackendId) -> anyhow::Result<()> {
        self.0.lock().unwrap().entry(backend).or_default().1.streaks = Streaks::default();
        Ok(())
    }

    fn limit(&self, backend: BackendId, limits: SignalLimits) -> anyhow::Result<()> {
        self.0.lock().unwrap().entry(backend).or_default().0 = limits;
        Ok(())
    }
}

struct Bench {
    model: World,
    changes: ServiceChanges,
    numbers: Numbers,
    judge: OutlierLoop<Numbers>,
    messages: Sender<OutlierMessage>,
    commands: Receiver<Command>,
    probed: Receiver<Vec<(BackendId, SocketAddr)>>,
}

impl Bench {
    fn new() -> Self {
        let ((messages, inbox), (commands, told)) = (mpsc::channel(), mpsc::channel());
        let (probe, probed) = mpsc::channel();
        let numbers = Numbers::default();
        let judge = OutlierLoop {
            source: numbers.clone(),
            detector: OutlierDetector::default(),
            messages: inbox,
            commands,
            instruments: Arc::new(Instruments::new().unwrap()),
            probe: Box::new(move |backends| probe.send(backends).unwrap()),
        };
        Self {
            model: World::new(),
            changes: ServiceChanges::default(),
            numbers,
            judge,
            messages,
            commands: told,
            probed,
        }
    }

    fn publish(&mut self) -> usize {
        let changed = follow::take(&mut self.changes, &self.model.state);
        let count = changed.len();
        self.messages.send(OutlierMessage::Published(changed)).unwrap();
        count
    }

    fn turn(&mut self, signals: &[(BackendId, SignalKind, Streaks)], now: Stamp) -> Vec<HealthUpdate> {
        assert!(self.judge.turn(signals.to_vec(), now).is_ok());
        let found: Vec<HealthUpdate> = self
            .commands
            .try_iter()
            .flat_map(|command| match command {
                Command::UpdateHealth(updates) => updates,
                _ => panic!("another command"),
            })
            .collect();
        if !found.is_empty() {
            self.model.apply(&Change::UpdateHealth { updates: found.clone() });
            self.publish();
        }
        found
    }
}

fn later(now: Stamp, millis: u64) -> Stamp {
    now.after(Duration::from_millis(millis))
}

#[test]
fn a_signal_becomes_an_ejection_and_the_end_of_it_a_recovery_probe() {
    let mut bench = Bench::new();
    let backends = json!([{"name": "a", "address": "10.1.0.1:80"}, {"name": "b", "address": "10.1.0.2:80"}]);
    bench.model.apply(&put("shop", json!({"frontends": ["10.0.0.1:80"], "backends": backends, "outlier": {}})));
    bench.publish();
    let (start, id) = (clock::stamp(), BackendId(bench.model.id("shop", "a")));
    assert_eq!(bench.turn(&[], start), []);
    assert_eq!(bench.numbers.0.lock().unwrap()[&id].0, SignalLimits { failures: 3, early_resets: 5 });
    let streaks = Streaks { failures: 3, ..Streaks::default() };
    let found = bench.turn(&[(id, SignalKind::Failures, streaks)], start);
    let HealthReport::Ejection(Some(ejection)) = &found[0].report else { panic!("{found:?}") };
    assert_eq!((found.len(), ejection.stage), (1, Stage::Out));
    assert_eq!(bench.numbers.0.lock().unwrap()[&id].0, SignalLimits::default());
    assert_eq!(bench.turn(&[(id, SignalKind::Failures, streaks)], later(start, 10)), []);
    assert_eq!(bench.turn(&[], later(start, 29_999)), []);
    assert!(bench.probed.try_recv().is_err());
    assert_eq!(bench.turn(&[], later(start, 30_000)), []);
    assert_eq!(bench.probed.try_recv().unwrap(), [(id, "10.1.0.1:80".parse().unwrap())]);
    bench.messages.send(OutlierMessage::Probed(vec![(id, RecoveryProbe::Answered)])).unwrap();
    let found = bench.turn(&[], later(start, 30_100));
    assert!(matches!(&found[0].report, HealthReport::Ejection(Some(ejection)) if ejection.stage == Stage::Trial));
    assert_eq!(bench.turn(&[], later(start, 40_100))[0].report, HealthReport::Ejection(None));
    let text = bench.judge.instruments.text().unwrap();
    assert!(text.contains("sluice_ejections_total{rule=\"consecutiveFailures\",service=\"shop\"} 1"), "{text}");
}

#[test]
fn services_without_rules_are_no_news() {
    let mut bench = Bench::new();
    let spec = |outlier: bool, weight: u32| {
        let mut spec = json!({"frontends": ["10.0.0.1:80"], "backends": [{"name": "a", "address": "10.1.0.1:80", "weight": weight}]});
        if outlier {
            spec["outlier"] = json!({});
        }
        spec
    };
    for (outlier, weight, news) in
        [(false, 1, 0), (false, 2, 0), (true, 2, 1), (true, 2, 0), (true, 3, 1), (false, 3, 1), (false, 4, 0)]
    {
        bench.model.apply(&put("shop", spec(outlier, weight)));
        assert_eq!(bench.publish(), news, "{outlier} {weight}");
    }
    let start = clock::stamp();
    bench.turn(&[], start);
    assert_eq!(bench.judge.detector.poll_timeout(), None);
}

#[test]
fn a_recovery_probe_tells_who_answers() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut probes =
        recovery_probe::probe_all(&[(BackendId(1), listener.local_addr().unwrap()), (BackendId(2), closed)], 0);
    probes.sort_by_key(|(id, _)| *id);
    assert_eq!(
        probes,
        [
            (BackendId(1), RecoveryProbe::Answered),
            (BackendId(2), RecoveryProbe::Failed("refused the connection".into()))
        ]
    );
}
