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

use super::{News, OutlierLoop, StreakSource, follow::Changes, now, recovery_probe};
use crate::{
    control::outlier::{Ejector, Limits, Look, Now, Signal, Streaks, Tried},
    engine::client::Command,
    model::{
        BackendId, Change, HealthReport, HealthUpdate, Stage,
        tests::{World, put},
    },
    telemetry::Instruments,
};

#[derive(Clone, Default)]
struct Numbers(Arc<Mutex<BTreeMap<BackendId, (Limits, Look)>>>);

impl StreakSource for Numbers {
    fn wait(&mut self, _: Option<Duration>) -> io::Result<Vec<(BackendId, Signal, Streaks)>> {
        Ok(Vec::new())
    }

    fn look(&self, backends: &[BackendId]) -> anyhow::Result<Vec<Look>> {
        let held = self.0.lock().unwrap();
        Ok(backends.iter().map(|id| held.get(id).map(|(_, look)| *look).unwrap_or_default()).collect())
    }

    fn restart(&self, backend: BackendId) -> anyhow::Result<()> {
        self.0.lock().unwrap().entry(backend).or_default().1.streaks = Streaks::default();
        Ok(())
    }

    fn limit(&self, backend: BackendId, limits: Limits) -> anyhow::Result<()> {
        self.0.lock().unwrap().entry(backend).or_default().0 = limits;
        Ok(())
    }
}

struct Bench {
    model: World,
    changes: Changes,
    numbers: Numbers,
    judge: OutlierLoop<Numbers>,
    news: Sender<News>,
    commands: Receiver<Command>,
    tried: Receiver<Vec<(BackendId, SocketAddr)>>,
}

impl Bench {
    fn new() -> Self {
        let ((news, inbox), (commands, told)) = (mpsc::channel(), mpsc::channel());
        let (try_, tried) = mpsc::channel();
        let numbers = Numbers::default();
        let judge = OutlierLoop {
            source: numbers.clone(),
            ejector: Ejector::default(),
            news: inbox,
            commands,
            instruments: Arc::new(Instruments::new().unwrap()),
            tries: Box::new(move |backends| try_.send(backends).unwrap()),
        };
        Self { model: World::new(), changes: Changes::default(), numbers, judge, news, commands: told, tried }
    }

    fn publish(&mut self) -> usize {
        let changed = self.changes.take(self.model.state.clone());
        let count = changed.len();
        self.news.send(News::Published(changed)).unwrap();
        count
    }

    fn turn(&mut self, signals: &[(BackendId, Signal, Streaks)], now: &Now) -> Vec<HealthUpdate> {
        assert!(self.judge.turn(signals, now).is_ok());
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

fn later(now: &Now, by: u64) -> Now {
    let by = Duration::from_millis(by);
    Now { stamp: now.stamp.after(by), monotonic: now.monotonic + by.as_nanos() as u64 }
}

#[test]
fn a_signal_becomes_a_finding_and_the_end_of_it_a_try() {
    let mut bench = Bench::new();
    let backends = json!([{"name": "a", "address": "10.1.0.1:80"}, {"name": "b", "address": "10.1.0.2:80"}]);
    bench.model.apply(&put("shop", json!({"frontends": ["10.0.0.1:80"], "backends": backends, "outlier": {}})));
    bench.publish();
    let (start, id) = (now(), BackendId(bench.model.id("shop", "a")));
    assert_eq!(bench.turn(&[], &start), []);
    assert_eq!(bench.numbers.0.lock().unwrap()[&id].0, Limits { failures: 3, early_resets: 5 });
    let streaks = Streaks { failures: 3, ..Streaks::default() };
    let found = bench.turn(&[(id, Signal::Failure, streaks)], &start);
    let HealthReport::Ejection(Some(ejection)) = &found[0].report else { panic!("{found:?}") };
    assert_eq!((found.len(), ejection.stage), (1, Stage::Out));
    assert_eq!(bench.numbers.0.lock().unwrap()[&id].0, Limits::default());
    assert_eq!(bench.turn(&[(id, Signal::Failure, streaks)], &later(&start, 10)), []);
    assert_eq!(bench.turn(&[], &later(&start, 29_999)), []);
    assert!(bench.tried.try_recv().is_err());
    assert_eq!(bench.turn(&[], &later(&start, 30_000)), []);
    assert_eq!(bench.tried.try_recv().unwrap(), [(id, "10.1.0.1:80".parse().unwrap())]);
    bench.news.send(News::Tried(vec![(id, Tried::Answered)])).unwrap();
    let found = bench.turn(&[], &later(&start, 30_100));
    assert!(matches!(&found[0].report, HealthReport::Ejection(Some(ejection)) if ejection.stage == Stage::Trial));
    assert_eq!(bench.turn(&[], &later(&start, 40_100))[0].report, HealthReport::Ejection(None));
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
    let start = now();
    bench.turn(&[], &start);
    assert_eq!(bench.judge.ejector.next_due(), None);
}

#[test]
fn a_try_tells_who_answers() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let mut tried = recovery_probe::all(&[(BackendId(1), listener.local_addr().unwrap()), (BackendId(2), closed)], 0);
    tried.sort_by_key(|(id, _)| *id);
    assert_eq!(
        tried,
        [(BackendId(1), Tried::Answered), (BackendId(2), Tried::Failed("refused the connection".into()))]
    );
}
