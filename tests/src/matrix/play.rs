//! Plays a cell: a client at work while its two servers leave and come back in turn.

use std::{
    collections::BTreeMap,
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    cell::{Cell, Effort, Expect, Says, ServerKind},
    outcome::{Drained, Outcome, Report},
};
use crate::{
    Agent, Namespace, Program, Service, World, agent,
    daemons::{Certificate, Daemon, is_up, nginx, postgres, redis},
    interrupt, program,
    system::eventually,
};

/// The clients' programs, and the server that some of them need: here, or where the environment variable says.
const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/matrix");
const VARIABLE: &str = "SLUICE_TEST_MATRIX";
const FRONTEND: &str = "10.96.0.10:8000";
const BACKENDS: [(&str, &str); 2] = [("b1", "10.0.0.1:18000"), ("b2", "10.0.0.2:18000")];
/// How long a client may take to start, and after its time to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// Of drains whose connections stay.
const PATIENCE_WITH_STREAMS: &str = "2s";

/// Runs a client while each of two servers is drained and restored in turn.
pub fn run(cell: &Cell, effort: &Effort) -> Result<Outcome> {
    let (world, files) = (World::new("matrix")?, tempfile::tempdir()?);
    let _servers = serve_all(&world.namespace, cell.server, &files)?;
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
    let log = log.replace(last, "");
    Ok(Outcome { report, drains, connections: connections(&agent)?, log })
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
        thread::sleep(effort.think + Duration::from_millis(500));
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
        Says::IdleClose(quiet) => service.set("idleClose", quiet),
        Says::Stream => service.set("protocol", "stream"),
    }
    .json()
}

fn serve_all(namespace: &Namespace, kind: ServerKind, files: &TempDir) -> Result<Vec<Daemon>> {
    let certificate = match kind {
        ServerKind::NodeTls | ServerKind::NginxTls => Some(Certificate::new(files.path())?),
        ServerKind::Node | ServerKind::Nginx | ServerKind::Redis | ServerKind::Postgres => None,
    };
    let start = |(name, address): &(&str, &str)| serve(namespace, kind, name, address.parse()?, certificate.as_ref());
    BACKENDS.iter().map(start).collect()
}

fn serve(
    namespace: &Namespace,
    kind: ServerKind,
    name: &str,
    address: SocketAddr,
    certificate: Option<&Certificate>,
) -> Result<Daemon> {
    namespace.address(address.ip())?;
    match kind {
        ServerKind::Nginx | ServerKind::NginxTls => nginx(namespace, name, address, certificate),
        ServerKind::Postgres => postgres(namespace, name, address),
        ServerKind::Redis => {
            let server = redis(namespace, address)?;
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            program::output(None, Some(namespace), &["redis-cli", "-h", &ip, "-p", &port, "set", "server", name])?;
            Ok(server)
        }
        ServerKind::Node | ServerKind::NodeTls => {
            let script = file("server.mjs");
            let (ip, port) = (address.ip().to_string(), address.port().to_string());
            let mut words = vec!["node", &script, "--name", name, "--address", &ip, "--port", &port];
            if let Some(Certificate { key, certificate }) = certificate {
                words.extend(["--key", key, "--certificate", certificate]);
            }
            let mut program = Program::start(None, Some(namespace), &words)?;
            is_up(namespace, address, &mut program)?;
            // Its first answer takes an emulated machine ten seconds.
            let scheme = if certificate.is_some() { "https" } else { "http" };
            program::output(None, Some(namespace), &["curl", "-sk", &format!("{scheme}://{address}/quick")])?;
            Ok(Daemon::bare(program))
        }
    }
}

/// A file of the matrix's directory.
fn file(name: &str) -> String {
    let directory = env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PROGRAMS), PathBuf::from);
    directory.join(name).to_string_lossy().into_owned()
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
        ("--think", effort.think.as_millis().to_string()),
    ];
    words.extend(arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]));
    Ok(words)
}
