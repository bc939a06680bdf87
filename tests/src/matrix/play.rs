//! Plays a cell: a client at work while its two servers leave and come back in turn.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    cell::{Cell, Effort, Expect, Says, ServerKind},
    outcome::{Drained, Outcome, Report},
    servers::{BACKENDS, Servers, file},
};
use crate::{Agent, Program, Service, World, agent, interrupt, program, system::eventually};

const FRONTEND: &str = "10.96.0.10:8000";
/// How long a client may take to start, and after its time to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of drains whose connections stay.
const PATIENCE_WITH_STREAMS: &str = "2s";

/// Runs a client while each of two servers is drained and restored in turn.
pub fn run(cell: &Cell, effort: &Effort) -> Result<Outcome> {
    let (world, files) = (World::new("matrix")?, tempfile::tempdir()?);
    let servers = Servers::start(&world.namespace, cell.server, &files)?;
    let mut agent = world.agent()?;
    if effort.quiet {
        agent = agent.quiet();
    }
    agent.start()?;
    agent.put("/v1/services/shop", &document(cell))?.expect_status(201);
    let words = words(cell, effort, &files)?;
    let mut client = Program::start(Some(&world.cgroup), Some(&world.namespace), &words)?;
    let began = eventually("the client begins", PATIENCE, || {
        let status = agent.get("/v1/services/shop").ok()?.json();
        (status["status"]["newConnections"].as_u64()? >= 2).then_some(())
    });
    began.with_context(|| client.log())?;
    let drains = drain_in_turn(&agent, cell, effort)?;
    client.wait(PATIENCE).with_context(|| client.log())?;
    let log = client.log();
    let last = log.lines().rev().find(|line| line.starts_with('{')).with_context(|| format!("no report: {log}"))?;
    let report: Report = serde_json::from_str(last).with_context(|| last.to_owned())?;
    ensure!(report.requests > 0, "{} did nothing: {log}", cell.client);
    let reached = match cell.work {
        // Several requests to the server are one to the client, or one is without an end.
        "bursts" | "pipelined" | "sse" | "websocket" | "busy" => None,
        _ => servers.requests(&world.namespace)?.map(|all| all.saturating_sub(report.requests - report.failed)),
    };
    let log = log.replace(last, "");
    Ok(Outcome { report, reached, drains, connections: connections(&agent)?, log })
}

/// Whether this kernel looks and closes in one step. Where it does not, a request that goes out between the two is lost.
pub fn closes_in_one_step() -> Result<bool> {
    let program = agent::program()?.to_string_lossy().into_owned();
    let report = program::output(None, None, &[&program, "check", "--output", "json"])?;
    let report: Value = serde_json::from_str(&report).context("reading what sluice check says")?;
    let found = report["items"].as_array().into_iter().flatten();
    let kfunc = found.into_iter().find(|item| item["feature"] == "bpf_sock_destroy");
    Ok(kfunc.context("sluice check does not speak of bpf_sock_destroy")?["status"] == "ok")
}

/// Connections since the start, by backend.
fn connections(agent: &Agent) -> Result<BTreeMap<String, u64>> {
    let status = agent.get("/v1/services/shop")?.expect_status(200).json();
    let backends = status["status"]["backends"].as_array().context("a service has backends")?;
    let count = |backend: &Value| Some((backend["name"].as_str()?.to_owned(), backend["newConnections"].as_u64()?));
    Ok(backends.iter().filter_map(count).collect())
}

fn drain_in_turn(agent: &Agent, cell: &Cell, effort: &Effort) -> Result<Vec<Drained>> {
    let end = Instant::now() + Duration::from_secs(effort.seconds.saturating_sub(3));
    let deadline = if cell.expect == Expect::Kept { PATIENCE_WITH_STREAMS } else { effort.deadline };
    let mut drains = Vec::new();
    for (name, _) in BACKENDS.iter().cycle() {
        // Both have connections when one of them leaves.
        thread::sleep(cell.think(effort.think) + Duration::from_millis(500));
        interrupt::check()?;
        if Instant::now() >= end {
            return Ok(drains);
        }
        let begin = Instant::now();
        let body = json!({"idleClose": effort.idle_close, "deadline": deadline});
        let path = format!("/v1/services/shop/backends/{name}");
        let operation = agent.post(&format!("{path}/drain"), &body)?.expect_status(202).json();
        let id = operation["id"].as_str().context("an id")?;
        let ended = agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=50s"))?.json();
        drains.push(Drained {
            phase: ended["phase"].as_str().unwrap_or_default().to_owned(),
            took: begin.elapsed(),
            closed: ended["closedIdle"].as_u64().unwrap_or(0),
        });
        agent.post(&format!("{path}/restore"), &json!({}))?.expect_status(200);
    }
    Ok(drains)
}

fn document(cell: &Cell) -> Value {
    let mut service = Service::new("shop", FRONTEND);
    for (name, address) in BACKENDS {
        service = service.backend(name, address, 1);
    }
    match cell.says {
        Says::Nothing => service,
        Says::Request => service.set("protocol", "request"),
        Says::IdleClose(quiet) => service.set("idleClose", format!("{quiet}s")),
        Says::Stream => service.set("protocol", "stream"),
    }
    .json()
}

/// The client's command line.
fn words(cell: &Cell, effort: &Effort, files: &TempDir) -> Result<Vec<String>> {
    let mut words = match (cell.client, cell.client.strip_suffix(".java")) {
        ("hyper", _) => vec![crate::client::program()?.to_string_lossy().into_owned(), "hyper".to_owned()],
        (client, Some(class)) => {
            // Compiled before, it starts within a second.
            let directory = files.path().to_string_lossy().into_owned();
            program::output(None, None, &["javac", "-d", &directory, &file(client)])?;
            let quick = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", &directory, class];
            quick.map(str::to_owned).to_vec()
        }
        (client, None) => vec![file(client)],
    };
    ensure!(Path::new(&words[0]).is_relative() || fs::exists(&words[0])?, "{} is not there", words[0]);
    let url = match cell.server {
        ServerKind::Node | ServerKind::Nginx => format!("http://{FRONTEND}"),
        ServerKind::NodeTls | ServerKind::NginxTls => format!("https://{FRONTEND}"),
        ServerKind::Redis => format!("redis://{FRONTEND}"),
        ServerKind::Postgres => format!("postgresql://postgres@{FRONTEND}/postgres"),
    };
    let arguments = [
        ("--url", url),
        ("--seconds", effort.seconds.to_string()),
        ("--workers", effort.workers.to_string()),
        ("--work", cell.work.to_owned()),
        ("--think", cell.think(effort.think).as_millis().to_string()),
    ];
    words.extend(arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    Ok(words)
}
