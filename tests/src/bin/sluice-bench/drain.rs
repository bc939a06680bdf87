//! What a drain costs with many connections, and how fast it is.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Steered, frontend},
    report::{Figure, Report, Target, Unit},
    scale::{millis, processor_time},
    worker::{PORT, Task},
};

const BACKENDS: u8 = 8;
/// As many as one process may have with both ends, where it may have 20,000 files.
const CONNECTIONS: u64 = 9_900;
/// How long the agent is watched while a drain waits.
const WATCHED: Duration = Duration::from_secs(10);
const QUIET: Duration = Duration::from_millis(100);

/// Drains a node with many idle connections, then one with as many that are in flight.
pub fn run(_: Scale, report: &mut Report) -> Result<()> {
    let mut bed = Steered::empty()?;
    let document = document();
    let answer = bed.agent.put("/v1/services/pool", &document)?;
    ensure!(answer.status == 201, "{} {}", answer.status, answer.text());

    let group = "drain of 9,900 idle connections";
    hold(&mut bed, CONNECTIONS, 0)?;
    let (id, start, before) = (begin(&bed)?, Instant::now(), processor_time(&bed)?);
    let ended = finish(&bed, &id)?;
    ensure!(ended["closedIdle"] == CONNECTIONS, "{ended}");
    let took = start.elapsed() - QUIET;
    let name = "request until drained, less the 100 ms of quiet";
    report.add(Figure::new(group, name, millis(took), Unit::Milliseconds).target(Target::AtMost(1000.0)));
    let work = millis(processor_time(&bed)? - before);
    report.add(Figure::new(group, "the agent's processor time for it", work, Unit::Milliseconds));
    release(&mut bed)?;

    let group = "drain with 9,900 connections in flight";
    hold(&mut bed, 0, CONNECTIONS)?;
    let id = begin(&bed)?;
    let (start, before) = (Instant::now(), processor_time(&bed)?);
    let looks = watch(&bed, &id)?;
    let (work, time) = (processor_time(&bed)? - before, start.elapsed());
    let look = millis(work) / looks.max(1) as f64;
    let figure = Figure::new(group, "processor time of one look", look, Unit::Milliseconds);
    report.add(figure.target(Target::AtMost(100.0)).note("at both ends: all of them were accepted here"));
    let share = work.as_secs_f64() / time.as_secs_f64();
    let figure = Figure::new(group, "the agent's share of one processor meanwhile", share, Unit::Ratio);
    report.add(figure.target(Target::AtMost(0.1)));
    bed.side.worker.run(&Task::Answer)?;
    let start = Instant::now();
    let ended = finish(&bed, &id)?;
    ensure!(ended["closedIdle"] == CONNECTIONS, "{ended}");
    let took = millis(start.elapsed());
    report.add(Figure::new(group, "all answered until drained", took, Unit::Milliseconds));
    release(&mut bed)
}

fn document() -> Value {
    let backends: Vec<_> = (0..BACKENDS)
        .map(|number| json!({"name": format!("b{number}"), "address": format!("10.0.{number}.1:{PORT}"), "node": "leaving"}))
        .collect();
    json!({"apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "pool"},
        "spec": {"frontends": [frontend(0).to_string()], "backends": backends}})
}

fn hold(bed: &mut Steered, idle: u64, busy: u64) -> Result<()> {
    bed.side.worker.run(&Task::Hold { to: frontend(0), idle, busy }).map(drop)
}

fn release(bed: &mut Steered) -> Result<()> {
    bed.side.worker.run(&Task::Release)?;
    let answer = bed.agent.post("/v1/nodes/leaving/restore", &json!({}))?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    Ok(())
}

/// The operation of a drain that has begun.
fn begin(bed: &Steered) -> Result<String> {
    let body = json!({"idleClose": "100ms", "deadline": "10m", "force": true});
    let answer = bed.agent.post("/v1/nodes/leaving/drain", &body)?;
    ensure!(answer.status == 202, "{} {}", answer.status, answer.text());
    Ok(answer.json()["id"].as_str().context("no id")?.to_owned())
}

fn finish(bed: &Steered, id: &str) -> Result<Value> {
    let answer = bed.agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=50s"))?.json();
    ensure!(answer["phase"] == "drained", "{answer}");
    Ok(answer)
}

/// How many looks there were in a while: each gives the oldest connection's age anew.
fn watch(bed: &Steered, id: &str) -> Result<u64> {
    let (end, mut last, mut looks) = (Instant::now() + WATCHED, Value::Null, 0);
    while Instant::now() < end {
        interrupt::check()?;
        let now = bed.agent.get(&format!("/v1/operations/{id}"))?.json()["remaining"]["oldestSeconds"].clone();
        looks += u64::from(now != last);
        last = now;
        thread::sleep(Duration::from_millis(25));
    }
    Ok(looks)
}
