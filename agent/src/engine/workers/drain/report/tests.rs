//! A drain from look to look, and what the engine is told of its end.

use std::sync::mpsc::{self, Receiver};

use serde_json::json;

use super::*;
use crate::{
    control::warmup::Ramps,
    model::{
        Change, DrainRequest,
        tests::{World, force, restore},
    },
    view::published::{AgentReadiness, ZeroProof},
};

const TARGET: &str = "shop/a";

/// The state with one drain, and the part of the worker that follows it. Looks find nothing.
struct Bench {
    world: World,
    published: watch::Sender<Arc<Published>>,
    commands: Receiver<Command>,
    operations: Arc<Operations>,
    reporter: DrainReporter,
    millis: u64,
}

impl Bench {
    fn new() -> Self {
        let mut world = World::new();
        let backends = json!([{"name": "a", "address": "10.1.0.1:80"}, {"name": "b", "address": "10.1.0.2:80"}]);
        world.put("shop", json!({"frontends": ["10.0.0.1:80"], "backends": backends}));
        let (published, receiver) = watch::channel(publication(&world));
        let (sender, commands) = mpsc::channel();
        let operations = Arc::new(Operations::default());
        let reporter = DrainReporter {
            published: receiver,
            commands: sender,
            operations: operations.clone(),
            events: Arc::new(EventLog::default()),
            drains: BTreeMap::new(),
        };
        Self { world, published, commands, operations, reporter, millis: 0 }
    }

    fn drain(&mut self, operation: &str, deadline: Duration) {
        let Change::Zero { target, zero, force, .. } = force(TARGET) else { unreachable!() };
        let (operation, deadline) = (operation.to_owned(), Some(deadline));
        let drain = Some(DrainRequest { operation, deadline, ..DrainRequest::default() });
        self.world.apply(&Change::Zero { target, zero, drain, force });
        let target: Target = TARGET.parse().unwrap();
        let drain = self.world.state.zero(&target).unwrap().lasting_drain().unwrap();
        if self.operations.get(&drain.operation).is_none() {
            self.operations.put(Operation::drain(&drain.operation, &target, drain.since, drain.deadline));
        }
        self.publish();
    }

    fn publish(&self) {
        self.published.send_replace(publication(&self.world));
    }

    /// Looks once, 250 ms after the last time. Returns the targets that were looked at.
    fn look(&mut self) -> Vec<String> {
        self.millis += 250;
        let now = Stamp { at: self.world.now, ..Stamp::test(self.millis) };
        let jobs = self.reporter.jobs(now);
        for job in &jobs {
            let (_, ended) = self.reporter.report(job, &Look::default(), now);
            ended.into_iter().for_each(|ended| self.reporter.end(ended));
        }
        jobs.iter().map(|job| job.drain.operation.clone()).collect()
    }

    /// The end that the engine was told, if it was told one.
    fn ended(&self) -> Option<(DrainEnded, oneshot::Sender<DrainEndAck>)> {
        let mut ends = self.commands.try_iter().filter_map(|command| match command {
            Command::EndDrain { ended, reply } => Some((*ended, reply)),
            _ => None,
        });
        let first = ends.next();
        assert!(ends.next().is_none(), "told more than once");
        first
    }
}

fn publication(world: &World) -> Arc<Published> {
    let proof = ZeroProof {
        at: world.now,
        monotonic_ns: 0,
        before: BTreeMap::new(),
        programmed_in: Duration::ZERO,
        unattached: None,
    };
    let zeroed = world.state.zeroed().into_iter().map(|(target, _)| (target, Arc::new(proof.clone())));
    Arc::new(Published {
        state: world.state.clone(),
        programmed: imbl::OrdMap::new(),
        zeros: zeroed.collect(),
        ramps: Ramps::default(),
        problems: imbl::OrdMap::new(),
        ready: AgentReadiness::Ready,
        missing: Default::default(),
        history: crate::view::history::History::default(),
    })
}

#[test]
fn an_end_is_told_once_and_nothing_is_looked_at_until_the_engine_answers() {
    let mut bench = Bench::new();
    bench.drain("op-1", Duration::from_secs(3600));
    assert_eq!((bench.look(), bench.look()), (vec!["op-1".to_owned()], vec!["op-1".to_owned()]));
    let (ended, reply) = bench.ended().unwrap();
    assert_eq!((ended.end, ended.operation.phase), (DrainEnd::Drained, OperationPhase::Drained));
    for _ in 0..1000 {
        assert!(bench.look().is_empty() && bench.ended().is_none() && !bench.reporter.drains.is_empty());
    }
    reply.send(DrainEndAck::Ended).unwrap();
    assert!(bench.look().is_empty());
    bench.world.apply(&restore(TARGET));
    bench.publish();
    assert!(bench.look().is_empty() && bench.ended().is_none() && bench.reporter.drains.is_empty());
}

#[test]
fn a_drain_whose_end_was_superseded_goes_on() {
    let mut bench = Bench::new();
    bench.drain("op-1", Duration::from_secs(3600));
    bench.look();
    bench.look();
    let (_, reply) = bench.ended().unwrap();
    // It is put off before the engine gets to its end.
    bench.drain("op-1", Duration::from_secs(7200));
    assert!(bench.look().is_empty());
    reply.send(DrainEndAck::Superseded).unwrap();
    assert_eq!(bench.look(), ["op-1"]);
    let (ended, reply) = bench.ended().unwrap();
    assert_eq!(ended.operation.deadline, Some(bench.world.now + Duration::from_secs(7200)));
    // It is begun anew.
    bench.world.apply(&restore(TARGET));
    bench.drain("op-2", Duration::from_secs(3600));
    reply.send(DrainEndAck::Superseded).unwrap();
    assert_eq!((bench.look(), bench.ended().is_none()), (vec!["op-2".to_owned()], true));
    bench.look();
    assert_eq!(bench.ended().unwrap().0.operation.id, "op-2");
}
