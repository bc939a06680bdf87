//! How fast a zero is: until the kernel has it, and until the last new connection.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};
use sluice_tests::{Agent, http::Response, interrupt};

use crate::{
    Scale,
    bed::{Steered, frontends},
    report::{Figure, Report, Samples, Target, Unit},
    worker::Task,
};

const GROUP: &str = "Zero of a node that every service has a backend on";

/// With few and many services, idle and under load.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    for services in [10, 1000, 10_000] {
        let mut steered = Steered::new(services, 10)?;
        let target = (services == 10_000).then_some(Target::AtMost(2000.0));
        idle(&steered, services, scale.of(300), target, report)?;
        loaded(&mut steered, services, scale.of(60), report)?;
    }
    Ok(())
}

fn idle(bed: &Steered, services: u32, rounds: u32, target: Option<Target>, report: &mut Report) -> Result<()> {
    let (mut kernel, mut answer) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        interrupt::check()?;
        let start = Instant::now();
        let proof = zero(&bed.agent)?;
        answer.push(start.elapsed().as_secs_f64() * 1e6);
        kernel.push(proof["programmedInMicroseconds"].as_f64().context("no programmedInMicroseconds")?);
        restore(&bed.agent)?;
    }
    let name = |what: &str| format!("{services} services, {what}");
    report.add(Figure::median(GROUP, name("request to kernel"), &kernel, Unit::Microseconds));
    let tail =
        Figure::new(GROUP, name("request to kernel, 99th percentile"), kernel.quantile(0.99), Unit::Microseconds);
    report.add(match target {
        Some(target) => tail.target(target),
        None => tail,
    });
    report.add(Figure::median(GROUP, name("request to answer"), &answer, Unit::Microseconds));
    let tail = answer.quantile(0.99);
    report.add(Figure::new(GROUP, name("request to answer, 99th percentile"), tail, Unit::Microseconds));
    Ok(())
}

/// Some hundred connections a second over all services while the node goes and comes.
fn loaded(bed: &mut Steered, services: u32, rounds: u32, report: &mut Report) -> Result<()> {
    const ROUND: Duration = Duration::from_millis(100);
    let Steered { agent, side } = bed;
    let millis = u64::from(rounds) * 2 * 100 + 2000;
    // Of few services, so that each round sees connections to the node.
    let to = frontends(services.min(100), false);
    let load = Task::Connections { to, threads: 2, millis, pause_micros: 500 };
    let (mut last, mut late, mut kernel) = (Samples::default(), 0, Samples::default());
    let answer = thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| side.worker.run(&load));
        for _ in 0..rounds {
            interrupt::check()?;
            thread::sleep(ROUND);
            let start = Timestamp::now();
            kernel.push(zero(agent)?["programmedInMicroseconds"].as_f64().context("no programmedInMicroseconds")?);
            thread::sleep(ROUND);
            let status = status(agent)?;
            late += status["newConnectionsSinceZero"].as_u64().context("no newConnectionsSinceZero")?;
            // Before the request: then the zero stopped the very next one. What begins in one tick of the kernel may all
            // carry the time of the first.
            let at = status["lastNewConnectionAt"].as_str().context("no connection came to the node")?;
            let at: Timestamp = at.parse().context("reading a time")?;
            last.push((at.duration_since(start).as_secs_f64() * 1e6).max(0.0));
            restore(agent)?;
        }
        load.join().ok().context("a thread panicked")?
    })?;
    let rate = format!("{:.0} connections a second", answer.rate);
    let name = |what: &str| format!("{services} services under load, {what}");
    let tail = kernel.quantile(0.99);
    report.add(Figure::new(GROUP, name("request to kernel, 99th percentile"), tail, Unit::Microseconds).note(&rate));
    let tail = last.quantile(0.99);
    report.add(Figure::new(GROUP, name("request to last new connection, 99th perc."), tail, Unit::Microseconds));
    let late = Figure::new(GROUP, name("picked after the acknowledgement"), late as f64, Unit::Count);
    report.add(late.target(Target::AtMost(0.0)));
    Ok(())
}

fn zero(agent: &Agent) -> Result<Value> {
    good(&agent.post("/v1/nodes/node-1/zero", &json!({"reason": "bench"}))?)
}

fn restore(agent: &Agent) -> Result<Value> {
    good(&agent.post("/v1/nodes/node-1/restore", &json!({}))?)
}

fn status(agent: &Agent) -> Result<Value> {
    Ok(good(&agent.get("/v1/nodes/node-1")?)?["status"].take())
}

/// The body of an answer that says yes.
fn good(answer: &Response) -> Result<Value> {
    ensure!(answer.status == 200, "the agent answers {}: {}", answer.status, answer.text());
    serde_json::from_slice(&answer.body).context("reading the agent's answer")
}
