//! How a drain goes on and ends.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use super::{QUIET, connection_to, drain, ends, is_closed, reaches};
use crate::stage::{FRONTEND, Stage};

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

/// What the last look closes was idle: nothing is left, and nothing was cut.
#[test]
fn a_drain_that_may_not_wait_closes_what_is_idle() -> Result<()> {
    let stage = Stage::weights("at-once", &[1, 1])?;
    let client = stage.client()?;
    let idle = connection_to(&client, "b1")?;
    thread::sleep(Duration::from_secs(1));
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "0s"}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(1)), "{ended}");
    is_closed(&idle)
}
