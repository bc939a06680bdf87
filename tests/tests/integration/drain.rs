//! A node leaves: what is in flight is waited for, what is idle is closed, and the end is told when it is true.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{
    Client, Connection, Errno, Namespace, Options, Server, Service, agent, client::Transport, program,
    system::eventually,
};

use crate::stage::{FRONTEND, LIMIT, Stage, path, weighted};

/// Short, and yet many ticks of every kernel's clock.
const QUIET: &str = "300ms";

/// A connection to this backend, which has exchanged something.
fn connection_to<'a>(client: &'a Client, backend: &str) -> Result<Connection<'a>> {
    for _ in 0..20 {
        let connection = client.connect(FRONTEND)?;
        if connection.line()? == backend {
            assert_eq!(connection.exchange("hello")?, format!("{backend}: hello"));
            return Ok(connection);
        }
    }
    anyhow::bail!("no connection went to {backend}")
}

fn drain(stage: &Stage, target: &str, body: &Value) -> Result<String> {
    let answer = stage.agent.post(&path(target, "drain"), body)?.expect_status(202);
    let operation = answer.json();
    assert_eq!((&operation["kind"], &operation["target"]), (&json!("drain"), &json!(target)), "{operation}");
    let id = operation["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.header("location"), Some(format!("/v1/operations/{id}").as_str()));
    Ok(id)
}

fn operation(stage: &Stage, id: &str) -> Result<Value> {
    Ok(stage.agent.get(&format!("/v1/operations/{id}"))?.json())
}

/// Waits until the operation is as `wanted` says.
fn reaches(stage: &Stage, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let reached = eventually("the operation moves on", LIMIT, || {
        last = operation(stage, id).ok()?;
        wanted(&last).then(|| last.clone())
    });
    reached.map_err(|error| error.context(format!("{last}")))
}

fn ends(stage: &Stage, id: &str) -> Result<Value> {
    let answer = stage.agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=50s"))?.expect_status(200);
    Ok(answer.json())
}

/// Whether this kernel has `bpf_sock_destroy`.
fn closes_under_the_lock(stage: &Stage) -> Result<bool> {
    let output = stage.agent.cli(&["check", "-o", "json"])?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let features = found["items"].as_array().expect("a list");
    Ok(features.iter().any(|one| one["feature"] == "bpf_sock_destroy" && one["status"] == "ok"))
}

/// The kernel has ended the connection; its owner is told.
fn is_closed(connection: &Connection<'_>) -> Result<()> {
    let error = eventually("the connection is closed", LIMIT, || connection.error());
    assert_eq!(error?, Errno::ECONNABORTED);
    Ok(())
}

#[test]
fn what_is_idle_is_closed_and_what_is_in_flight_is_waited_for() -> Result<()> {
    let stage = Stage::weights("drain", &[1, 1])?;
    let client = stage.client()?;
    let (idle, busy, other) =
        (connection_to(&client, "b1")?, connection_to(&client, "b1")?, connection_to(&client, "b2")?);
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "reason": "test"}))?;
    is_closed(&idle)?;
    let waiting = reaches(&stage, &id, |operation| operation["phase"] == "waiting")?;
    let remaining = &waiting["remaining"];
    assert_eq!((&remaining["total"], &remaining["inFlight"]), (&json!(1), &json!(1)), "{waiting}");
    assert_eq!((&waiting["closedIdle"], &waiting["finishedAt"]), (&json!(1), &Value::Null), "{waiting}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "draining");
    stage.agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=10ms"))?.expect_status(202);
    stage.agent.get(&format!("/v1/operations/{id}?wait=zeroed&timeout=10s"))?.expect_status(200);
    // It stays for as long as the request takes, and much longer than the time of quiet.
    thread::sleep(Duration::from_secs(2));
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    is_closed(&busy)?;
    let drained = ends(&stage, &id)?;
    assert_eq!((&drained["phase"], &drained["remaining"]["total"]), (&json!("drained"), &json!(0)), "{drained}");
    assert_eq!((&drained["closedIdle"], &drained["closedLate"]), (&json!(2), &json!(0)), "{drained}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "drained");
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, 0);
    assert_eq!(other.exchange("still here")?, "b2: still here");
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 10);
    assert_eq!(stage.metric("sluice_drain_closed_connections_total", &[("reason", "idle")])?, 2.0);
    assert_eq!(stage.metric("sluice_drain_duration_seconds_count", &[])?, 1.0);
    stage.restore("node/n1")?;
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 5);
    Ok(())
}

#[test]
fn who_came_without_sluice_is_waited_for_too() -> Result<()> {
    let stage = Stage::weights("stranger", &[1, 1])?;
    let (client, outside) = (stage.client()?, Client::start(None, Some(&stage.world.namespace))?);
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!((stranger.line()?, stranger.exchange("hi")?), ("b1".into(), "b1: hi".into()));
    let idle = connection_to(&client, "b1")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET}))?;
    is_closed(&idle)?;
    let waiting = reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 1)?;
    assert_eq!(waiting["remaining"]["total"], 0, "{waiting}");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(operation(&stage, &id)?["finishedAt"], Value::Null);
    assert_eq!(stranger.exchange("still here")?, "b1: still here");
    drop(stranger);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    // And closed where they were accepted, for who asks for that.
    stage.restore("shop/b1")?;
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!((stranger.line()?, stranger.exchange("hi")?), ("b1".into(), "b1: hi".into()));
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "closeInbound": "idle", "deadline": "5s"}))?;
    let ended = ends(&stage, &id)?;
    if closes_under_the_lock(&stage)? {
        assert_eq!((&ended["phase"], &ended["closedInbound"]), (&json!("drained"), &json!(1)), "{ended}");
        assert_eq!(stranger.error(), Some(Errno::ECONNRESET));
    } else {
        // Without the kernel's help they are counted only.
        assert_eq!(
            (&ended["phase"], &ended["remaining"]["inbound"]),
            (&json!("deadlineReached"), &json!(1)),
            "{ended}"
        );
    }
    Ok(())
}

#[test]
fn the_deadline_keeps_what_is_left_or_closes_it() -> Result<()> {
    let stage = Stage::weights("deadline", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": null, "deadline": "1s"}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["total"]), (&json!("deadlineReached"), &json!(1)), "{ended}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "zero", "it gets nothing, and has something");
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "500ms", "onDeadline": "close"}))?;
    is_closed(&busy)?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedLate"]), (&json!("deadlineReached"), &json!(1)), "{ended}");
    assert_eq!(ended["remaining"]["total"], 0, "{ended}");
    Ok(())
}

#[test]
fn a_restore_ends_the_closing_at_once() -> Result<()> {
    let stage = Stage::weights("cancel", &[1, 1])?;
    let client = stage.client()?;
    let (idle, busy) = (connection_to(&client, "b1")?, connection_to(&client, "b1")?);
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET}))?;
    is_closed(&idle)?;
    stage.restore("node/n1")?;
    let cancelled = reaches(&stage, &id, |operation| operation["phase"] == "cancelled")?;
    assert_ne!(cancelled["finishedAt"], Value::Null);
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    thread::sleep(Duration::from_secs(2));
    assert_eq!(busy.exchange("idle and there")?, "b1: idle and there");
    assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
    assert_eq!(cancelled["message"], "its target was restored");
    // The same again, by its own expiry.
    let id = drain(&stage, "node/n1", &json!({"idleClose": null, "expires": "1s"}))?;
    let cancelled = reaches(&stage, &id, |operation| operation["phase"] == "cancelled")?;
    assert!(cancelled["message"].as_str().is_some_and(|why| why.contains("expired")), "{cancelled}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
    Ok(())
}

#[test]
fn a_drain_goes_on_where_a_killed_agent_left_it() -> Result<()> {
    let mut stage = Stage::weights("drain-kill", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["phase"] == "waiting")?;
    stage.agent.kill()?;
    stage.agent.start()?;
    let found = reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    assert_eq!((&found["phase"], &found["kind"]), (&json!("waiting"), &json!("drain")), "{found}");
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    is_closed(&busy)?;
    let ended = ends(&stage, &id)?;
    assert_eq!(ended["phase"], "drained", "{ended}");
    stage.agent.kill()?;
    stage.agent.start()?;
    assert_eq!(operation(&stage, &id)?, ended, "it is remembered");
    assert_eq!(stage.backend("shop", "b1")?["state"], "drained");
    Ok(())
}

#[test]
fn a_deadline_passes_while_no_agent_runs() -> Result<()> {
    let mut stage = Stage::weights("drain-late", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "1s", "onDeadline": "close"}))?;
    stage.agent.kill()?;
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(busy.error(), None, "nobody was there to close it");
    stage.agent.start()?;
    is_closed(&busy)?;
    assert_eq!(ends(&stage, &id)?["phase"], "deadlineReached");
    Ok(())
}

#[test]
fn streams_and_slow_services_keep_their_quiet_connections() -> Result<()> {
    let mut stage = Stage::new("stream")?;
    for (name, port) in [("b1", 8080), ("b2", 8081), ("b3", 8082)] {
        stage.tcp(&format!("10.0.0.1:{port}"), name)?;
    }
    let service = |name: &str, frontend: &str, backend: &str, port: u16| {
        let address = format!("10.0.0.1:{port}");
        Service::new(name, frontend).backend_on("n1", backend, &address, 1)
    };
    stage.put(&service("fast", FRONTEND, "b1", 8080))?;
    stage.put(&service("events", "10.96.0.11:80", "b2", 8081).set("protocol", "stream"))?;
    stage.put(&service("slow", "10.96.0.12:80", "b3", 8082).set("idleClose", "1h"))?;
    let client = stage.client()?;
    let fast = connection_to(&client, "b1")?;
    let (events, slow) = (client.connect("10.96.0.11:80")?, client.connect("10.96.0.12:80")?);
    assert_eq!((events.line()?, events.exchange("x")?), ("b2".into(), "b2: x".into()));
    assert_eq!((slow.line()?, slow.exchange("x")?), ("b3".into(), "b3: x".into()));
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "4s", "force": true}))?;
    is_closed(&fast)?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["total"]), (&json!("deadlineReached"), &json!(2)), "{ended}");
    assert_eq!((events.exchange("y")?, slow.exchange("y")?), ("b2: y".into(), "b3: y".into()));
    Ok(())
}

#[test]
fn connected_datagram_sockets_are_closed_and_unconnected_ones_are_not() -> Result<()> {
    let mut stage = Stage::new("drain-udp")?;
    for (number, name) in [(1, "b1"), (2, "b2")] {
        stage.udp(&format!("10.0.0.{number}:53"), name)?;
    }
    let service = Service::new("dns", "10.96.0.10:53/udp").backend_on("n1", "b1", "10.0.0.1:53", 1).backend_on(
        "n2",
        "b2",
        "10.0.0.2:53",
        1,
    );
    stage.put(&service)?;
    let client = stage.client()?;
    let sockets: Vec<_> = (0..4).map(|_| client.datagrams_to("10.96.0.10:53")).collect::<Result<_, _>>()?;
    let (leaving, staying): (Vec<_>, Vec<_>) =
        sockets.into_iter().partition(|socket| socket.exchange("q").expect("an answer").0.starts_with("b1"));
    assert_eq!((leaving.len(), staying.len()), (2, 2));
    let unconnected: Vec<_> = (0..2).map(|_| client.datagrams("0.0.0.0:0")).collect::<Result<_, _>>()?;
    for socket in &unconnected {
        socket.exchange_with("q", "10.96.0.10:53")?;
    }
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(2)), "{ended}");
    for socket in &leaving {
        assert_eq!(socket.error(), Some(Errno::ECONNABORTED));
    }
    for socket in &staying {
        assert!(socket.exchange("again")?.0.starts_with("b2"));
    }
    for socket in &unconnected {
        assert!(socket.exchange_with("again", "10.96.0.10:53")?.0.starts_with("b2"));
    }
    Ok(())
}

#[test]
fn the_last_capacity_is_not_drained_unless_forced() -> Result<()> {
    let stage = Stage::weights("drain-last", &[1, 1])?;
    drain(&stage, "node/n1", &json!({}))?;
    let refused = stage.agent.post("/v1/nodes/n2/drain", &json!({}))?.expect_status(409).json();
    assert!(refused["detail"].as_str().unwrap().contains("shop"), "{refused}");
    assert_eq!(stage.backend("shop", "b2")?["state"], "ready");
    let operations = stage.agent.get("/v1/operations")?.json();
    assert_eq!(operations["items"].as_array().unwrap().len(), 1, "{operations}");
    let id = drain(&stage, "node/n2", &json!({"force": true}))?;
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    let client = stage.client()?;
    assert_eq!(client.connect(FRONTEND).err(), Some(Errno::ECONNREFUSED));
    Ok(())
}

#[test]
fn a_drain_may_be_repeated_and_changed() -> Result<()> {
    let stage = Stage::weights("repeat", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "10m"}))?;
    assert_eq!(drain(&stage, "node/n1", &json!({}))?, id);
    let deadline = operation(&stage, &id)?["deadline"].clone();
    assert_eq!(drain(&stage, "node/n1", &json!({"deadline": "1s", "onDeadline": "close"}))?, id);
    is_closed(&busy)?;
    let ended = ends(&stage, &id)?;
    assert_ne!(ended["deadline"], deadline);
    assert_eq!(ended["phase"], "deadlineReached", "{ended}");
    let next = drain(&stage, "node/n1", &json!({}))?;
    assert_ne!(next, id);
    assert_eq!(ends(&stage, &next)?["phase"], "drained");
    Ok(())
}

#[test]
fn a_backend_that_comes_to_a_draining_node_is_drained_with_it() -> Result<()> {
    let mut stage = Stage::weights("joins", &[1, 1])?;
    stage.tcp("10.0.0.3:8080", "b3")?;
    let client = stage.client()?;
    let other = Service::new("other", "10.96.0.20:80").backend_on("n9", "b3", "10.0.0.3:8080", 1);
    stage.put(&other)?;
    let moved = client.connect("10.96.0.20:80")?;
    assert_eq!((moved.line()?, moved.exchange("x")?), ("b3".into(), "b3: x".into()));
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    // Its backend moves to the node that leaves.
    stage.put(&Service::new("other", "10.96.0.20:80").backend_on("n1", "b3", "10.0.0.3:8080", 1))?;
    is_closed(&moved)?;
    drop(busy);
    assert_eq!(ends(&stage, &id)?["closedIdle"], 1);
    Ok(())
}

#[test]
fn a_backend_that_leaves_the_configuration_takes_its_drain_with_it() -> Result<()> {
    let stage = Stage::weights("gone", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    let mut only = weighted(&[1, 1]).json();
    only["spec"]["backends"].as_array_mut().unwrap().remove(0);
    stage.agent.put("/v1/services/shop", &only)?.expect_status(200);
    let cancelled = reaches(&stage, &id, |operation| operation["finishedAt"] != Value::Null)?;
    let wanted = (&json!("cancelled"), &json!("its target left the configuration"));
    assert_eq!((&cancelled["phase"], &cancelled["message"]), wanted);
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    Ok(())
}

#[test]
fn a_backend_that_leaves_the_configuration_is_waited_for_all_the_same() -> Result<()> {
    let stage = Stage::weights("leaves", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    let mut only = weighted(&[1, 1]).json();
    only["spec"]["backends"].as_array_mut().unwrap().remove(0);
    stage.agent.put("/v1/services/shop", &only)?.expect_status(200);
    thread::sleep(Duration::from_secs(1));
    let waiting = operation(&stage, &id)?;
    assert_eq!((&waiting["finishedAt"], &waiting["remaining"]["total"]), (&Value::Null, &json!(1)), "{waiting}");
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    drop(busy);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

#[test]
fn what_the_server_has_closed_is_no_request() -> Result<()> {
    let stage = Stage::weights("hung-up", &[1, 1])?;
    let client = stage.client()?;
    let pooled = connection_to(&client, "b1")?;
    // As a server does that tires of an idle connection; the pool has not looked yet.
    pooled.send("close\n")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(1)), "{ended}");
    Ok(())
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() -> Result<()> {
    let stage = Stage::weights("drain-bad", &[1, 1])?;
    for (body, field) in [
        (json!({"deadline": "-5s"}), "deadline"),
        (json!({"deadline": "soon"}), "deadline"),
        (json!({"deadline": 60}), "deadline"),
        (json!({"idleClose": "1ms"}), "idleClose"),
        (json!({"idleClose": "2h"}), "idleClose"),
        (json!({"onDeadline": "drop"}), "onDeadline"),
        (json!({"closeInbound": true}), "closeInbound"),
        (json!({"closeInbound": "idle", "idleClose": "never"}), "closeInbound"),
        (json!({"expires": "-1m"}), "expires"),
        (json!({"dead line": "60s"}), "dead line"),
    ] {
        let answer = stage.agent.post("/v1/nodes/n1/drain", &body)?.expect_status(422).json();
        assert_eq!(answer["field"], field, "{body}: {answer}");
    }
    stage.agent.post("/v1/nodes/nobody/drain", &json!({}))?.expect_status(404);
    stage.agent.post("/v1/services/shop/backends/nobody/drain", &json!({}))?.expect_status(404);
    stage.agent.get("/v1/operations/op-nothing?wait=drained")?.expect_status(404);
    let plan = stage.agent.post("/v1/nodes/n1/drain?dryRun=true", &json!({}))?.expect_status(200).json();
    assert_eq!(plan["dryRun"], true);
    let text = plan["plan"].to_string();
    assert!(text.contains("node/n1: closed") && text.contains("shop/b1: leaves"), "names, not ids: {plan}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
    assert_eq!(stage.agent.get("/v1/operations")?.json()["items"], json!([]));
    Ok(())
}

#[test]
fn the_command_line_waits_and_its_exit_code_tells() -> Result<()> {
    let stage = Stage::weights("drain-cli", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let words = ["drain", "node/n1", "--wait", "drained", "--idle-close", QUIET, "--timeout", "1s"];
    let output = stage.agent.cli(&words)?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("1 in flight") && said.contains("not drained yet"), "{said}");
    let output = stage.agent.cli(&["drain", "node/n1", "--wait", "drained", "--deadline", "1s"])?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("deadline"), "{output:?}");
    drop(busy);
    let output = stage.agent.cli(&["drain", "node/n1", "--wait", "drained", "-o", "json"])?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let ended: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(ended["phase"], "drained");
    let output = stage.agent.cli(&["drain", "node/n2"])?;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("draining node/n2") && said.contains("--force"), "{said}");
    for wrong in [["--deadline", "200h"], ["--idle-close", "1ms"], ["--for", "-1m"], ["--timeout", "1s"]] {
        let output = stage.agent.cli(&["drain", "node/n2", wrong[0], wrong[1]])?;
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {output:?}");
    }
    let output = stage.agent.cli(&["get", "operations"])?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("drained"), "{output:?}");
    Ok(())
}

#[test]
fn the_command_line_tells_a_drain_that_goes_on_from_an_agent_that_is_gone() -> Result<()> {
    let mut stage = Stage::weights("drain-away", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    stage.agent.kill()?;
    let words = ["drain", "node/n1", "--wait", "drained", "--timeout", "3s"];
    assert_eq!(stage.agent.cli(&words)?.status.code(), Some(1), "there is none to begin with");
    stage.agent.start()?;
    let waiting = thread::scope(|scope| {
        let output = scope.spawn(|| stage.agent.cli(&words));
        thread::sleep(Duration::from_secs(1));
        let killed = stage.agent.signal(nix::sys::signal::Signal::SIGKILL);
        (killed, output.join().unwrap())
    });
    waiting.0?;
    let output = waiting.1?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    for words in
        ["cannot be reached, trying", "1 in flight", "nobody knows whether node/n1 is drained", "get operations"]
    {
        assert!(said.contains(words), "{words} in {said}");
    }
    Ok(())
}

#[test]
fn a_drain_shows_wherever_its_target_does() -> Result<()> {
    let stage = Stage::weights("drain-shown", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    let words = [
        &["describe", "node/n1"][..],
        &["describe", "shop/b1"],
        &["describe", "shop"],
        &["explain", FRONTEND],
        &["zero", "node/n1"],
    ];
    for words in words {
        let output = stage.agent.cli(words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        for part in [&*id, "waiting, until", "1 connection left: 1 in flight"] {
            assert!(text.contains(part), "{part} in {words:?}: {text}");
        }
        assert!(!text.contains("untouched"), "{words:?}: {text}");
    }
    let output = stage.agent.cli(&["get", "nodes", "-o", "wide"])?;
    assert!(String::from_utf8_lossy(&output.stdout).contains(&id), "{output:?}");
    // Zeroed by itself, and emptied with its node.
    stage.agent.post(&path("shop/b1", "zero"), &json!({"force": true}))?.expect_status(200);
    let backend = stage.backend("shop", "b1")?;
    assert_eq!(
        (&backend["state"], &backend["drain"], &backend["zeroed"]),
        (&json!("draining"), &json!(id), &json!("shop/b1"))
    );
    Ok(())
}

#[test]
fn what_a_node_accepts_is_counted_only_where_the_node_is() -> Result<()> {
    let stage = Stage::weights("drain-here", &[1, 1])?;
    // In the agent's cgroup, and in the namespace of the servers.
    let _client = stage.client()?;
    stage.put(&Service::new("far", "10.96.0.20:80").backend_on("n9", "f1", "10.0.77.1:8080", 1))?;
    let id = drain(&stage, "node/n1", &json!({}))?;
    assert_eq!(ends(&stage, &id)?["remaining"]["inbound"], 0, "the server runs here");
    let id = drain(&stage, "node/n9", &json!({"force": true}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], ended["remaining"].get("inbound")), (&json!("drained"), None), "{ended}");
    Ok(())
}

#[test]
fn connections_in_every_namespace_are_found() -> Result<()> {
    let stage = Stage::weights("drain-ns", &[1, 1])?;
    let here = stage.client()?;
    let there = Namespace::new()?;
    let _link = stage.world.namespace.link(&there, ("10.1.0.1".parse()?, 24), ("10.1.0.2".parse()?, 24))?;
    there.ip("route add default via 10.1.0.1")?;
    let elsewhere = Client::start(Some(&stage.world.cgroup), Some(&there))?;
    let (near, far) = (connection_to(&here, "b1")?, connection_to(&elsewhere, "b1")?);
    let busy = connection_to(&elsewhere, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    is_closed(&near)?;
    is_closed(&far)?;
    // The namespace goes away with all that is in it.
    drop((busy, near, far));
    drop(elsewhere);
    drop((_link, there));
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// As on a host where each pod has a namespace: one that was found empty is looked at again when somebody comes.
#[test]
fn a_stranger_comes_to_one_of_many_namespaces() -> Result<()> {
    let stage = Stage::weights("drain-pods", &[1, 1])?;
    let pods = (0..6).map(|_| {
        let pod = Namespace::new()?;
        pod.address("10.0.0.1".parse()?)?;
        let process = Client::start(Some(&stage.world.cgroup), Some(&pod))?;
        Ok((pod, process))
    });
    let pods: Vec<(Namespace, Client)> = pods.collect::<Result<_>>()?;
    let (last, _) = pods.last().expect("six of them");
    let _server = Server::tcp(last, "10.0.0.1:8080".parse()?, "pod")?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    // The server of its backend has accepted it.
    let here = reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 1)?;
    thread::sleep(Duration::from_secs(1));
    let outside = Client::start(None, Some(last))?;
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!(stranger.line()?, "pod", "{here}");
    reaches(&stage, &id, |operation| operation["remaining"]["inbound"] == 2)?;
    drop(busy);
    let left = reaches(&stage, &id, |operation| operation["remaining"]["total"] == 0)?;
    assert_eq!((&left["remaining"]["inbound"], &left["finishedAt"]), (&json!(1), &Value::Null), "{left}");
    drop(stranger);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

#[test]
fn host_check_tells_where_processes_cannot_be_seen() -> Result<()> {
    let find = |words: &[&str]| -> Result<Value> {
        let agent = agent::program()?;
        let check = [&agent.to_string_lossy(), "check", "-o", "json"];
        let found: Value = serde_json::from_str(&program::output(None, None, &[words, &check].concat())?)?;
        let rows = found["items"].as_array().expect("rows");
        Ok(rows.iter().find(|row| row["feature"] == "network namespaces").expect("a row").clone())
    };
    let outside = find(&[])?;
    assert!(outside["detail"].as_str().is_some_and(|text| !text.contains("hostPID")), "{outside}");
    let inside = find(&["unshare", "--pid", "--fork", "--mount-proc"])?;
    assert_eq!(inside["status"], "degraded");
    assert!(inside["detail"].as_str().is_some_and(|text| text.contains("hostPID")), "{inside}");
    Ok(())
}

/// Its owner would not learn that its only path is gone.
#[test]
fn multipath_connections_are_kept_to_the_deadline() -> Result<()> {
    let stage = Stage::weights("drain-mptcp", &[1, 1])?;
    let client = stage.client()?;
    let mptcp = Options::default().transport(Transport::Mptcp);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let connection = match client.connect_with(FRONTEND, &mptcp) {
            // A kernel may be built without it.
            Err(Errno::EPROTONOSUPPORT | Errno::ENOPROTOOPT) => return Ok(()),
            connection => connection?,
        };
        let server = connection.line()?;
        assert_eq!(connection.exchange("hello")?, format!("{server}: hello"));
        kept.push((server, connection));
    }
    let plain = connection_to(&client, "b1")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "3s"}))?;
    is_closed(&plain)?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["idle"]), (&json!("deadlineReached"), &json!(1)), "{ended}");
    for (server, connection) in &kept {
        assert_eq!(connection.exchange("still here")?, format!("{server}: still here"));
    }
    Ok(())
}

#[test]
fn events_tell_the_whole_story() -> Result<()> {
    let stage = Stage::weights("drain-events", &[1, 1])?;
    let id = drain(&stage, "node/n1", &json!({"reason": "upgrade"}))?;
    ends(&stage, &id)?;
    let output = stage.agent.cli(&["events", "-o", "json"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for kind in ["drainStarted", "drainMoved", "drained"] {
        assert!(text.contains(&format!("\"{kind}\"")), "{kind} in {text}");
    }
    Ok(())
}
