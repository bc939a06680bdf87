//! What is said of a drain: by the command line, wherever its target shows, and about requests that make no sense.

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Errno, agent::program};

use crate::{
    drain::{QUIET, connection_to, drain, ends, reaches},
    stage::{FRONTEND, Stage, path},
};

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
    let output = stage.agent.cli(&["drain", "node/n1", "--wait", "drained", "--timeout", "0s"])?;
    assert_eq!(output.status.code(), Some(3), "one look: {output:?}");
    let output = stage.agent.cli(&["drain", "node/n1", "--wait", "drained", "--deadline", "1s"])?;
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("deadline"), "{output:?}");
    drop(busy);
    let output = stage.agent.cli(&["drain", "node/n1", "--wait", "drained", "-o", "json"])?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let ended: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(ended["phase"], "drained");
    // Without a wait to end, it is the answer that --timeout is about.
    let output = stage.agent.cli(&["drain", "node/n2", "--timeout", "20s"])?;
    assert_eq!(output.status.code(), Some(4), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("draining node/n2") && said.contains("--force"), "{said}");
    for wrong in [["--deadline", "200h"], ["--idle-close", "1ms"], ["--for", "-1m"], ["--timeout", "0s"]] {
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
    let output = stage.agent.cli(&words)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "there is none to begin with: {said}");
    assert!(said.contains("cannot be reached, trying") && said.contains("no agent answers"), "{said}");
    let mut early = Command::new(program()?);
    early.args(["drain", "node/n1", "--wait", "zeroed", "-o", "json"]).env("SLUICE_SOCKET", stage.agent.socket());
    let early = early.stdout(Stdio::piped()).spawn()?;
    thread::sleep(Duration::from_secs(1));
    stage.agent.start()?;
    let output = early.wait_with_output()?;
    let begun: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((output.status.code(), &begun["id"]), (Some(0), &json!(id)), "an agent that comes back is asked");
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
    let output = stage.agent.cli(&["get", "operations"])?;
    assert!(String::from_utf8_lossy(&output.stdout).contains("waiting"), "{output:?}");
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
fn a_name_that_nothing_bears_is_told_from_nothing_left() -> Result<()> {
    let stage = Stage::weights("drain-typo", &[1, 1])?;
    let id = drain(&stage, "node/n1", &json!({}))?;
    ends(&stage, &id)?;
    let operation = format!("get operations {id}`");
    for (words, said) in [
        (&["connections", "--node", "nope"][..], "no node nope"),
        (&["connections", "--service", "nope"], "no service nope"),
        (&["connections", "--service", "shop", "--backend", "nope"], "no backend nope"),
        (&["connections", "--backend", "nope"], "no service has a backend nope"),
        (&["describe", "n1"], "describe node/n1`"),
        (&["describe", &id], &operation),
    ] {
        let output = stage.agent.cli(words)?;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{words:?}: {output:?}");
        assert!(error.contains(said), "{said} in {error}");
    }
    for words in [&["--node", "n1"][..], &["--service", "shop", "--backend", "b1"], &["--backend", "b1"]] {
        let output = stage.agent.cli(&[&["connections"], words].concat())?;
        assert_eq!(output.status.code(), Some(0), "{words:?}: {output:?}");
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
    assert!(text.contains("node/n1: closed") && text.contains("shop/b1: drained"), "names, not ids: {plan}");
    assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
    assert_eq!(stage.agent.get("/v1/operations")?.json()["items"], json!([]));
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
