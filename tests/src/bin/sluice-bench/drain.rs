//! What a drain costs with many connections, and how fast it is.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Namespace, interrupt};

use crate::{
    Scale,
    bed::{Steered, frontend, worker},
    report::{Figure, Report, Target, Unit},
    scale::{millis, processor_time},
    worker::{PORT, Task, Worker},
};

/// Beginnings of addresses. Every namespace has the loopback's: the agent does not look for who has accepted there.
const HERE: &str = "10.0";
const ELSEWHERE: &str = "127.0";
const BACKENDS: u8 = 8;
/// Of one worker: a process may have 20,000 files where nobody says otherwise, and holds both ends.
pub const EACH: u64 = 6_250;
/// How long the agent is watched while a drain waits.
const WATCHED: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(100);

/// Drains a node with idle connections, then with many that are in flight.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    if scale.wants("idle") {
        idle("drain of idle connections", "eof", 5000.0, report)?;
        idle("drain of idle connections, closeAs: abort", "abort", 1000.0, report)?;
    }
    if scale.wants("in flight") {
        let workers = scale.of(16) as usize;
        in_flight(workers, "drain with connections in flight, on the host of the callers", ELSEWHERE, report)?;
        in_flight(workers, "drain with connections in flight, callers and backends on one host", HERE, report)?;
    }
    Ok(())
}

/// `most`: how long it may take, in ms. An end of stream is told to both ends, and the kernel asked in between.
fn idle(group: &'static str, close_as: &str, most: f64, report: &mut Report) -> Result<()> {
    let mut crowd = Crowd::new(2, HERE, close_as)?;
    let number = crowd.hold(EACH, 0)?;
    let (id, start, before) = (crowd.begin()?, Instant::now(), processor_time(&crowd.bed)?);
    let ended = crowd.finish(&id)?;
    ensure!(ended["closedIdle"] == number, "{ended}");
    let name = "request until drained, less the 100 ms of quiet";
    let figure = Figure::new(group, name, millis(start.elapsed() - QUIET), Unit::Milliseconds);
    report.add(figure.target(Target::AtMost(most)).note(format!("{number} connections")));
    let work = millis(processor_time(&crowd.bed)? - before);
    report.add(Figure::new(group, "the agent's processor time for it", work, Unit::Milliseconds));
    Ok(())
}

fn in_flight(workers: usize, group: &'static str, network: &str, report: &mut Report) -> Result<()> {
    let mut crowd = Crowd::new(workers, network, "eof")?;
    let number = crowd.hold(0, EACH)?;
    let id = crowd.begin()?;
    let (start, before) = (Instant::now(), processor_time(&crowd.bed)?);
    let looks = crowd.watch(&id)?;
    let (work, time) = (processor_time(&crowd.bed)? - before, start.elapsed());
    let look = millis(work) / looks.max(1) as f64;
    let figure = Figure::new(group, "processor time of one look", look, Unit::Milliseconds);
    let figure = figure.note(format!("{number} connections"));
    report.add(if network == ELSEWHERE { figure.target(Target::AtMost(100.0)) } else { figure });
    let share = work.as_secs_f64() / time.as_secs_f64();
    let figure = Figure::new(group, "the agent's share of one processor meanwhile", share, Unit::Ratio);
    report.add(figure.target(Target::AtMost(0.1)));
    crowd.release()?;
    let start = Instant::now();
    crowd.finish(&id)?;
    let figure = Figure::new(group, "the last one gone until drained", millis(start.elapsed()), Unit::Milliseconds);
    report.add(figure.target(Target::AtMost(1000.0)));
    Ok(())
}

/// Workers with connections to one node, each in a namespace of its own.
struct Crowd {
    bed: Steered,
    workers: Vec<(Worker, Namespace)>,
}

impl Crowd {
    fn new(workers: usize, network: &str, close_as: &str) -> Result<Self> {
        let bed = Steered::empty()?;
        let workers = (0..workers).map(|_| worker(&bed.side.cgroup)).collect::<Result<_>>()?;
        let answer = bed.agent.put("/v1/services/pool", &document(network, close_as))?;
        ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
        Ok(Self { bed, workers })
    }

    /// Returns how many connections there are then.
    fn hold(&mut self, idle: u64, busy: u64) -> Result<u64> {
        for (worker, _) in &mut self.workers {
            interrupt::check()?;
            worker.run(&Task::Hold { to: frontend(0), idle, busy })?;
        }
        Ok(self.workers.len() as u64 * (idle + busy))
    }

    fn release(&mut self) -> Result<()> {
        self.workers.iter_mut().try_for_each(|(worker, _)| worker.run(&Task::Release).map(drop))
    }

    /// The operation of a drain that has begun.
    fn begin(&self) -> Result<String> {
        let body = json!({"idleClose": "100ms", "deadline": "10m", "force": true});
        let answer = self.bed.agent.post("/v1/nodes/leaving/drain", &body)?;
        ensure!(answer.status == 202, "{} {}", answer.status, answer.text());
        Ok(answer.json()["id"].as_str().context("no id")?.to_owned())
    }

    fn finish(&self, id: &str) -> Result<Value> {
        let answer = self.bed.agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=50s"))?.json();
        ensure!(answer["phase"] == "drained", "{answer}");
        Ok(answer)
    }

    /// How many looks there were in a while: each gives the oldest connection's age anew.
    fn watch(&self, id: &str) -> Result<u64> {
        let (end, mut last, mut looks) = (Instant::now() + WATCHED, Value::Null, 0);
        while Instant::now() < end {
            interrupt::check()?;
            let operation = self.bed.agent.get(&format!("/v1/operations/{id}"))?.json();
            let now = operation["remaining"]["oldestSeconds"].clone();
            looks += u64::from(now != last);
            last = now;
            thread::sleep(Duration::from_millis(100));
        }
        Ok(looks)
    }
}

fn document(network: &str, close_as: &str) -> Value {
    let backend = |number| json!({"name": format!("b{number}"), "address": format!("{network}.{number}.1:{PORT}"), "node": "leaving"});
    let backends: Vec<_> = (0..BACKENDS).map(backend).collect();
    json!({"apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "pool"},
        "spec": {"frontends": [frontend(0).to_string()], "closeAs": close_as, "backends": backends}})
}
