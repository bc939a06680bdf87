//! Sessions, in which quiet does not mean that nothing is under way: a drain leaves them alone without being told.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Client, Connection, Program, Service, daemons::postgres, system::eventually};

use super::{QUIET, drain, ends, is_closed, reaches};
use crate::stage::{LIMIT, Stage};

/// What the list of connections says of those of each service, and how many they are.
fn sessions(stage: &Stage) -> Result<BTreeMap<String, (Value, u64)>> {
    let found = stage.agent.get("/v1/connections")?.expect_status(200).json();
    let mut sessions = BTreeMap::new();
    for row in found["items"].as_array().expect("a list") {
        let service = row["service"].as_str().expect("a service").to_owned();
        let entry = sessions.entry(service).or_insert((row["session"].clone(), 0));
        assert_eq!(entry.0, row["session"], "those of a service are alike: {found}");
        entry.1 += 1;
    }
    Ok(sessions)
}

/// Asks a web server.
fn ask(connection: &Connection<'_>) -> Result<()> {
    assert_eq!(connection.exchange("HEAD / HTTP/1.1\r\nhost: web\r\n\r")?, "HTTP/1.1 200 OK");
    while !connection.line()?.is_empty() {}
    Ok(())
}

#[test]
fn sessions_stay_and_requests_do_not() -> Result<()> {
    let mut stage = Stage::new("sessions")?;
    for (name, port) in [("m1", 8081), ("t1", 8082)] {
        stage.tcp(&format!("10.0.0.1:{port}"), name)?;
    }
    for (name, port) in [("w1", 8083), ("c1", 8084)] {
        stage.http(&format!("10.0.0.1:{port}"), name)?;
    }
    let service = |name: &str, frontend: &str, backend: &str, port: u16| {
        Service::new(name, frontend).backend_on("n1", backend, &format!("10.0.0.1:{port}"), 1)
    };
    // Its server greets; so does that of the next one, which says that it is about requests nevertheless.
    stage.put(&service("mail", "10.96.0.1:25", "m1", 8081))?;
    stage.put(&service("told", "10.96.0.2:25", "t1", 8082).set("protocol", "request"))?;
    stage.put(&service("web", "10.96.0.3:80", "w1", 8083))?;
    // Nothing tells what is spoken there but its port.
    stage.put(&service("cache", "10.96.0.4:6379", "c1", 8084))?;
    let client = stage.client()?;
    let (greeted, talked) = (client.connect("10.96.0.1:25")?, client.connect("10.96.0.1:25")?);
    assert_eq!((greeted.line()?, talked.line()?), ("m1".into(), "m1".into()));
    assert_eq!(talked.exchange("begin")?, "m1: begin");
    let told = client.connect("10.96.0.2:25")?;
    assert_eq!((told.line()?, told.exchange("hello")?), ("t1".into(), "t1: hello".into()));
    let (web, cache) = (client.connect("10.96.0.3:80")?, client.connect("10.96.0.4:6379")?);
    ask(&web)?;
    ask(&cache)?;
    // Nobody steers this one; it came to a backend that steered callers have sessions with.
    let outside = Client::start(None, Some(&stage.world.namespace))?;
    let stranger = outside.connect("10.0.0.1:8081")?;
    assert_eq!((stranger.line()?, stranger.exchange("begin")?), ("m1".into(), "m1: begin".into()));
    let wanted = [
        ("cache", (json!("usualPort"), 1)),
        ("mail", (json!("serverFirst"), 2)),
        ("told", (Value::Null, 1)),
        ("web", (Value::Null, 1)),
    ];
    assert_eq!(sessions(&stage)?, wanted.map(|(service, found)| (service.to_owned(), found)).into());
    let output = stage.agent.cli(&["describe", "mail"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("but for sessions: 2 of 2 connections (2 serverFirst)"), "{text}");

    let terms = json!({"idleClose": QUIET, "closeInbound": "idle", "deadline": "3s", "force": true});
    let id = drain(&stage, "node/n1", &terms)?;
    is_closed(&told)?;
    is_closed(&web)?;
    let waits = reaches(&stage, &id, |operation| operation["remaining"]["total"] == 3)?;
    assert_eq!((&waits["remaining"]["idle"], &waits["remaining"]["sessions"]), (&json!(3), &json!(3)), "{waits}");
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("deadlineReached"), &json!(2)), "{ended}");
    let message = ended["message"].as_str().unwrap_or_default();
    for part in ["3 idle ones are taken for sessions", "`protocol: request`", "port 6379 is usually that of Redis"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!((greeted.exchange("begin")?, talked.exchange("end")?), ("m1: begin".into(), "m1: end".into()));
    assert_eq!(stranger.exchange("end")?, "m1: end");
    drop(stranger);
    ask(&cache)?;
    // A service that says so has them closed, also during a drain.
    stage.restore("node/n1")?;
    let id = drain(&stage, "mail/m1", &json!({"idleClose": QUIET, "deadline": "10m", "force": true}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["sessions"] == 2)?;
    stage.put(&service("mail", "10.96.0.1:25", "m1", 8081).set("protocol", "request"))?;
    is_closed(&greeted)?;
    is_closed(&talked)?;
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// Known by how such a client asks for encryption, and by its port where it does not ask.
#[test]
fn host_a_transaction_of_postgresql_outlives_what_is_idle() -> Result<()> {
    let stage = Stage::new("transaction")?;
    stage.world.namespace.address("10.0.0.1".parse()?)?;
    let _server = postgres(&stage.world.namespace, "p1", "10.0.0.1:15432".parse()?)?;
    for (name, frontend) in [("asks", "10.96.0.1:7000"), ("plain", "10.96.0.2:5432")] {
        stage.put(&Service::new(name, frontend).backend_on("n1", "p1", "10.0.0.1:15432", 1))?;
    }
    let begin = |frontend: &str, mode: &str| {
        let url = format!("postgresql://postgres@{frontend}/postgres?sslmode={mode}");
        let words = ["psql", "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", &url];
        let table = format!("create table {mode} (n int)");
        let (row, count) = (format!("insert into {mode} values (7)"), format!("select n from {mode}"));
        let script = ["begin", &table, &row, "select 'open'", r"\! sleep 5", "commit", &count];
        let script: Vec<_> = script.iter().flat_map(|line| ["-c", *line]).collect();
        Program::start(Some(&stage.world.cgroup), Some(&stage.world.namespace), &[&words[..], &script].concat())
    };
    let mut clients = [begin("10.96.0.1:7000", "prefer")?, begin("10.96.0.2:5432", "disable")?];
    for client in &clients {
        eventually("the transaction is open", LIMIT, || client.log().contains("open").then_some(()))?;
    }
    let wanted = [("asks", (json!("postgres"), 1)), ("plain", (json!("usualPort"), 1))];
    assert_eq!(sessions(&stage)?, wanted.map(|(service, found)| (service.to_owned(), found)).into());
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "2s", "force": true}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["sessions"]), (&json!("deadlineReached"), &json!(2)), "{ended}");
    for client in &mut clients {
        assert!(client.wait(Duration::from_secs(30))?.success(), "{}", client.log());
        assert_eq!(client.log().split_whitespace().collect::<Vec<_>>(), ["open", "7"]);
    }
    Ok(())
}
