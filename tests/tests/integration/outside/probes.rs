//! Backends take connections while they are ready, as probes and reports say, and the agent says why they do not.

use std::{fs, os::unix::fs::PermissionsExt, thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Errno, Load, Report, Service, system::eventually};

use crate::{
    readiness::{serves, watched},
    stage::{FRONTEND, LIMIT, Stage, backend_address, path},
};

/// Quick, and with time for a machine that is busy.
fn probing(kind: &str) -> Value {
    json!({"kind": kind, "period": "200ms", "timeout": "2s"})
}

/// Waits until what is said of a backend contains this.
fn says(stage: &Stage, backend: &str, text: &str) -> Result<()> {
    let mut last = Value::Null;
    let said = eventually("the reason", LIMIT, || {
        last = stage.backend("shop", backend).ok()?;
        last["health"].to_string().contains(text).then_some(())
    });
    said.map_err(|error| error.context(format!("{text:?} is not in {last}")))
}

fn report(stage: &Stage, backend: &str, body: &Value) -> Result<Value> {
    Ok(stage.agent.post(&path(&format!("shop/{backend}"), "ready"), body)?.expect_status(200).json())
}

fn some_connections(stage: &Stage) -> Result<Report> {
    Ok(stage.client()?.run(&Load::connects(FRONTEND).count(40)))
}

#[test]
fn a_new_backend_gets_its_first_connection_once_its_port_is_open() -> Result<()> {
    let mut stage = Stage::probing("ready-new", |agent| agent)?;
    for number in [1, 2] {
        stage.tcp(&backend_address(number), &format!("b{number}"))?;
    }
    // Its address stays.
    stage.servers.remove("b2");
    stage.put(&watched(2, probing("tcp")))?;
    serves(&stage, "b1", true)?;
    let status = stage.becomes("b2", "unhealthy")?;
    assert!(status["health"].is_object(), "{status}");
    says(&stage, "b2", "connection refused")?;
    assert_eq!(some_connections(&stage)?.by_server().len(), 1, "only b1 answers");
    assert_eq!(stage.count("shop", "b2", "newConnections")?, 0);

    stage.tcp(&backend_address(2), "b2")?;
    stage.becomes("b2", "ready")?;
    serves(&stage, "b2", true)?;
    let report = some_connections(&stage)?;
    assert!(report.answered_by("b2") > 0, "{:?}", report.by_server());
    Ok(())
}

#[test]
fn a_backend_that_stops_answering_is_out_and_comes_back() -> Result<()> {
    let mut stage = Stage::probing("ready-out", |agent| agent)?;
    for number in [1, 2] {
        stage.http(&backend_address(number), &format!("b{number}"))?;
    }
    stage.put(&watched(2, json!({"kind": "http", "path": "/healthz", "period": "200ms", "status": ["200"]})))?;
    serves(&stage, "b1", true)?;
    serves(&stage, "b2", true)?;
    stage.servers["b2"].set_status(503);
    stage.becomes("b2", "unhealthy")?;
    says(&stage, "b2", "HTTP 503, wanted 200")?;
    let before = stage.count("shop", "b2", "newConnections")?;
    let client = stage.client()?;
    for _ in 0..20 {
        client.connect(FRONTEND)?;
    }
    assert_eq!(stage.count("shop", "b2", "newConnections")?, before);
    stage.servers["b2"].set_status(200);
    stage.becomes("b2", "ready")?;
    serves(&stage, "b2", true)
}

#[test]
fn probes_reach_the_backend_and_not_what_its_address_is_steered_to() -> Result<()> {
    // The agent lives in the cgroup that it steers, and the port that is probed is a frontend.
    let mut stage = Stage::probing_steered("ready-mark")?;
    let steered = format!("{}:9000", backend_address(1).split_once(':').expect("a port").0);
    stage.tcp(&backend_address(1), "b1")?;
    stage.tcp(&backend_address(2), "b2")?;
    let trap = Service::new("trap", &steered).backend("b2", &backend_address(2), 1);
    stage.put(&trap)?;
    let client = stage.client()?;
    assert_eq!(client.connect(&steered)?.line()?, "b2", "whoever has no mark is steered");
    let mut readiness = probing("tcp");
    readiness["port"] = json!(9000);
    stage.put(&watched(1, readiness))?;
    says(&stage, "b1", "connection refused")?;
    stage.tcp(&steered, "probed")?;
    stage.becomes("b1", "ready")?;
    Ok(())
}

#[test]
fn the_delay_passes_before_the_first_connection() -> Result<()> {
    let mut stage = Stage::probing("ready-delay", |agent| agent)?;
    stage.tcp(&backend_address(1), "b1")?;
    stage.tcp(&backend_address(2), "b2")?;
    let mut service = watched(1, probing("tcp"));
    stage.put(&service)?;
    serves(&stage, "b1", true)?;
    let mut late = probing("tcp");
    late["delay"] = json!("1h");
    service = watched(2, probing("tcp"));
    let mut document = service.json();
    document["spec"]["backends"][1]["readiness"] = late.clone();
    stage.agent.put("/v1/services/shop", &document)?.expect_status(200);
    let probes = || stage.metric("sluice_probes_total", &[("kind", "tcp"), ("result", "success")]);
    let before = probes()?;
    eventually("ten probes more", LIMIT, || (probes().ok()? >= before + 10.0).then_some(()))?;
    assert_eq!(some_connections(&stage)?.answered_by("b2"), 0);
    late["delay"] = json!("300ms");
    document["spec"]["backends"][1]["readiness"] = late;
    stage.agent.put("/v1/services/shop", &document)?.expect_status(200);
    serves(&stage, "b2", true)
}

#[test]
fn a_server_that_is_restored_before_it_listens_gets_nothing_until_it_does() -> Result<()> {
    let mut stage = Stage::probing("ready-restored", |agent| agent)?;
    // b2 and b3 are on one node, and are looked at in two ways. Each probe that fails is one of three.
    let mut document =
        watched(3, json!({"kind": "tcp", "period": "1s"})).set("warmup", json!({"duration": "1h"})).json();
    document["spec"]["backends"][2]["readiness"] = json!({"kind": "http", "port": 9000, "period": "1s"});
    document["spec"]["backends"][2]["node"] = json!("n2");
    let start = |stage: &mut Stage| -> Result<()> {
        stage.tcp(&backend_address(2), "b2")?;
        stage.tcp(&backend_address(3), "b3")?;
        stage.http("10.0.0.3:9000", "health of b3")
    };
    stage.tcp(&backend_address(1), "b1")?;
    start(&mut stage)?;
    stage.agent.put("/v1/services/shop", &document)?.expect_status(201);
    for backend in ["b1", "b2", "b3"] {
        serves(&stage, backend, true)?;
    }
    let client = stage.client()?;
    let load = client.begin(&Load::connects(FRONTEND).pause(Duration::from_millis(5)));
    let drained = stage.agent.cli(&["drain", "node/n2", "--wait", "drained", "--idle-close", "100ms"])?;
    assert!(drained.status.success(), "{drained:?}");
    for server in ["b2", "b3", "health of b3"] {
        stage.servers.remove(server);
    }
    let restored = stage.restore("node/n2")?;
    assert_eq!((&restored["state"], &restored["unhealthy"]), (&json!("ready"), &json!(2)), "{restored}");
    says(&stage, "b2", "refused")?;
    thread::sleep(Duration::from_millis(1500));
    start(&mut stage)?;
    for backend in ["b2", "b3"] {
        let status = stage.becomes(backend, "warming")?;
        assert!(status["warming"]["part"].as_f64().is_some_and(|part| part < 0.02), "{status}");
        serves(&stage, backend, true)?;
    }
    let attempts = load.attempts();
    load.reached(attempts + 400, LIMIT)?;
    let report = load.stop();
    assert_eq!(report.errors(), Default::default(), "of {} connections", report.attempts.len());
    assert!(["b2", "b3"].iter().all(|server| report.answered_by(server) > 0), "{:?}", report.by_server());
    Ok(())
}

#[test]
fn a_hook_decides() -> Result<()> {
    let hooks = tempfile::tempdir()?;
    let hook = hooks.path().join("by-file");
    let sign = hooks.path().join("b1.ready");
    fs::write(
        &hook,
        format!("#!/bin/sh\ntest -e {}/$SLUICE_BACKEND.ready || {{ echo no sign; exit 7; }}\n", hooks.path().display()),
    )?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let mut stage =
        Stage::probing("ready-exec", |agent| agent.argument("--hooks").argument(&hooks.path().to_string_lossy()))?;
    stage.tcp(&backend_address(1), "b1")?;
    let readiness = json!({"kind": "exec", "command": ["by-file"], "period": "200ms", "timeout": "10s"});
    stage.put(&watched(1, readiness))?;
    says(&stage, "b1", "exit status 7: no sign")?;
    assert_eq!(stage.client()?.connect(FRONTEND).err(), Some(Errno::ECONNREFUSED));
    fs::write(&sign, "")?;
    stage.becomes("b1", "ready")?;
    serves(&stage, "b1", true)?;
    fs::remove_file(&sign)?;
    stage.becomes("b1", "unhealthy")?;
    Ok(())
}

#[test]
fn a_restart_keeps_unready_backends_out_and_leases_running() -> Result<()> {
    let mut stage = Stage::probing("ready-restart", |agent| agent)?;
    for number in [1, 2, 3] {
        stage.tcp(&backend_address(number), &format!("b{number}"))?;
    }
    stage.put(&watched(3, probing("tcp")))?;
    for backend in ["b1", "b2", "b3"] {
        serves(&stage, backend, true)?;
    }
    stage.servers.remove("b2");
    stage.becomes("b2", "unhealthy")?;
    serves(&stage, "b2", false)?;
    report(&stage, "b3", &json!({"lease": "1s"}))?;
    stage.agent.kill()?;
    stage.agent.start()?;
    let report = some_connections(&stage)?;
    assert!(report.errors().is_empty() && report.answered_by("b1") > 0, "{:?}", report.errors());
    assert_eq!(stage.backend("shop", "b2")?["state"], "unhealthy");
    stage.becomes("b3", "unhealthy")?;
    says(&stage, "b3", "within 1s")?;
    serves(&stage, "b3", false)?;
    stage.tcp(&backend_address(2), "b2")?;
    serves(&stage, "b2", true)
}
