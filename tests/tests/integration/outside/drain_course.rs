//! How a drain goes on: over restarts of the agent, changes of the configuration and restores.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::Service;

use crate::{
    drain::{QUIET, connection_to, drain, ends, is_closed, operation, reaches},
    stage::{FRONTEND, Stage, weighted},
};

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
    let other = Service::new("other", "10.96.0.20:80").set("protocol", "request");
    stage.put(&other.clone().backend_on("n9", "b3", "10.0.0.3:8080", 1))?;
    let moved = client.connect("10.96.0.20:80")?;
    assert_eq!((moved.line()?, moved.exchange("x")?), ("b3".into(), "b3: x".into()));
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    // Its backend moves to the node that leaves.
    stage.put(&other.backend_on("n1", "b3", "10.0.0.3:8080", 1))?;
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
    let mut stage = Stage::weights("leaves", &[1, 1])?;
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
    // The next agent has it from the operation.
    stage.agent.kill()?;
    stage.agent.start()?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    thread::sleep(Duration::from_secs(1));
    assert_eq!(operation(&stage, &id)?["finishedAt"], Value::Null);
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    drop(busy);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

#[test]
fn a_backend_that_moves_to_another_node_is_its_drain_no_more() -> Result<()> {
    let stage = Stage::weights("moves", &[1, 1])?;
    let client = stage.client()?;
    let busy = connection_to(&client, "b1")?;
    busy.send("half of ")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["inFlight"] == 1)?;
    let mut moved = weighted(&[1, 1]).json();
    moved["spec"]["backends"][0]["node"] = json!("n3");
    stage.agent.put("/v1/services/shop", &moved)?.expect_status(200);
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 5);
    Ok(())
}
