//! The loss matrix: real clients with pools of connections, while their servers are drained and restored in turn. What a
//! client calls a failed request was lost.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Agent, Namespace, Program, Service, World,
    daemons::{Daemon, is_up, nginx, postgres, redis},
    program,
    system::eventually,
};

/// The clients' programs, and the server that some of them need.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix");
const FRONTEND: &str = "10.96.0.10:8000";
const BACKENDS: [(&str, &str); 2] = [("b1", "10.0.0.1:18000"), ("b2", "10.0.0.2:18000")];
/// How long a client may take to start, and after its time to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// One client at one kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// A file of the matrix's directory.
    pub client: &'static str,
    pub server: ServerKind,
    /// As the clients name it: quick (1 ms), slow (2 s), chunked (pauses of 3 s), poll (8 s), sse, websocket, pipelined.
    pub work: &'static str,
    /// What the service says of itself.
    pub says: Says,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    Node,
    Nginx,
    Redis,
    Postgres,
}

/// What a service's document says of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Requests and answers in turn.
    Nothing,
    /// Its own time of quiet.
    IdleClose(&'static str),
    Stream,
}

/// How long, how many and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub seconds: u64,
    pub workers: u32,
    /// Between the requests of a worker.
    pub think: Duration,
    /// Quiet after which drains close idle connections.
    pub idle_close: &'static str,
    /// Of each drain.
    pub deadline: &'static str,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub report: Report,
    pub drains: Vec<Drained>,
}

/// What a client says at its end.
#[derive(Clone, Debug, Deserialize)]
pub struct Report {
    /// Library and version.
    pub client: String,
    pub requests: u64,
    pub failed: u64,
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Requests by the server that answered.
    pub servers: BTreeMap<String, u64>,
}

/// One drain.
#[derive(Clone, Debug)]
pub struct Drained {
    pub phase: String,
    pub took: Duration,
    pub closed: u64,
}

impl Outcome {
    pub fn closed(&self) -> u64 {
        self.drains.iter().map(|drain| drain.closed).sum()
    }

    /// Drains that ended because nothing was left.
    pub fn drained(&self) -> usize {
        self.drains.iter().filter(|drain| drain.phase == "drained").count()
    }

    /// The slowest drain.
    pub fn slowest(&self) -> Duration {
        self.drains.iter().map(|drain| drain.took).max().unwrap_or_default()
    }
}

/// Runs a client while each of two servers is drained and restored in turn.
pub fn run(cell: &Cell, effort: &Effort) -> Result<Outcome> {
    let world = World::new("matrix")?;
    let _servers = BACKENDS.iter().map(|(name, address)| serve(&world.namespace, cell.server, name, address.parse()?));
    let _servers: Vec<Daemon> = _servers.collect::<Result<_>>()?;
    let mut agent = world.agent()?;
    agent.start()?;
    agent.put("/v1/services/shop", &document(cell))?.expect_status(201);
    let compiled = tempfile::tempdir()?;
    let words = words(cell, effort, &compiled)?;
    let mut client = Program::start(Some(&world.cgroup), Some(&world.namespace), &words)?;
    let began = eventually("the client begins", PATIENCE, || {
        let status = agent.get("/v1/services/shop").ok()?.json();
        (status["status"]["newConnections"].as_u64()? >= 2).then_some(())
    });
    began.with_context(|| client.log())?;
    let drains = drain_in_turn(&agent, effort)?;
    client.wait(PATIENCE)?;
    let log = client.log();
    let last = log.lines().rev().find(|line| line.starts_with('{')).with_context(|| format!("no report: {log}"))?;
    let report: Report = serde_json::from_str(last).with_context(|| last.to_owned())?;
    for line in log.lines().filter(|line| *line != last) {
        println!("{}: {line}", cell.client);
    }
    ensure!(report.requests > 0, "{} did nothing: {log}", cell.client);
    Ok(Outcome { report, drains })
}

fn drain_in_turn(agent: &Agent, effort: &Effort) -> Result<Vec<Drained>> {
    let end = Instant::now() + Duration::from_secs(effort.seconds.saturating_sub(3));
    let mut drains = Vec::new();
    for (name, _) in BACKENDS.iter().cycle() {
        // Both have connections when one of them leaves.
        thread::sleep(effort.think + Duration::from_millis(500));
        if Instant::now() >= end {
            return Ok(drains);
        }
        let begin = Instant::now();
        let body = json!({"idleClose": effort.idle_close, "deadline": effort.deadline});
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
        Says::IdleClose(quiet) => service.set("idleClose", quiet),
        Says::Stream => service.set("protocol", "stream"),
    }
    .json()
}

fn serve(namespace: &Namespace, kind: ServerKind, name: &str, address: SocketAddr) -> Result<Daemon> {
    namespace.address(address.ip())?;
    match kind {
        ServerKind::Nginx => nginx(namespace, name, address),
        ServerKind::Postgres => postgres(namespace, name, address),
        ServerKind::Redis => {
            let server = redis(namespace, address)?;
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            program::output(None, Some(namespace), &["redis-cli", "-h", &ip, "-p", &port, "set", "server", name])?;
            Ok(server)
        }
        ServerKind::Node => {
            let script = format!("{PROGRAMS}/server.mjs");
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let words = ["node", &script, "--name", name, "--address", &ip, "--port", &port];
            let mut program = Program::start(None, Some(namespace), &words)?;
            is_up(namespace, address, &mut program)?;
            Ok(Daemon::bare(program))
        }
    }
}

/// The client's command line.
fn words(cell: &Cell, effort: &Effort, compiled: &TempDir) -> Result<Vec<String>> {
    let file = format!("{PROGRAMS}/{}", cell.client);
    let mut words = match Path::new(cell.client).file_stem().and_then(|stem| stem.to_str()) {
        Some(class) if cell.client.ends_with(".java") => {
            // Compiled before, it starts within a second.
            let directory = compiled.path().to_string_lossy().into_owned();
            program::output(None, None, &["javac", "-d", &directory, &file])?;
            let quick = ["java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", &directory, class];
            quick.map(str::to_owned).to_vec()
        }
        _ => vec![file],
    };
    ensure!(fs::exists(PROGRAMS)?, "{PROGRAMS} is not there: the matrix runs where it was built");
    let url = match cell.server {
        ServerKind::Node | ServerKind::Nginx => format!("http://{FRONTEND}"),
        ServerKind::Redis => format!("redis://{FRONTEND}"),
        ServerKind::Postgres => format!("postgresql://postgres@{FRONTEND}/postgres"),
    };
    let arguments = [
        ("--url", url),
        ("--seconds", effort.seconds.to_string()),
        ("--workers", effort.workers.to_string()),
        ("--work", cell.work.to_owned()),
        ("--think", effort.think.as_millis().to_string()),
    ];
    words.extend(arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    Ok(words)
}
