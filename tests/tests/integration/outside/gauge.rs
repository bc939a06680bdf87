//! The number of open connections, as the agent shows it after whatever was counted wrongly.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Load, system::eventually};

use crate::{
    forge,
    gauge::{ADDRESS, watchful},
    stage::{FRONTEND, LIMIT, assert_all_answered},
};

#[test]
fn an_end_that_was_counted_twice_does_not_wrap() -> Result<()> {
    let stage = watchful("twice")?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 5));
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    forge::counters(&stage.agent, ADDRESS, |counters| counters.closed += 3)?;
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, 0);
    assert_eq!(stage.count("shop", "b1", "connecting")?, 0);
    Ok(())
}

#[test]
fn a_busy_backend_is_put_right_too() -> Result<()> {
    let stage = watchful("busy")?;
    let client = stage.client()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(2).pause(Duration::from_millis(2)));
    load.reached(100, LIMIT)?;
    // What the kernel counts between the reading and the writing of this is lost: the difference is a little more.
    forge::counters(&stage.agent, ADDRESS, |counters| {
        counters.opened += 1000;
        counters.established += 1000;
    })?;
    eventually("the gauge is near the truth", LIMIT, || {
        (stage.count("shop", "b1", "activeConnections").ok()? < 500).then_some(())
    })?;
    assert_all_answered(&load.stop());
    stage.count_is("shop", "b1", "activeConnections", 0)
}

#[test]
fn a_removed_backend_takes_nobody_else_into_its_count() -> Result<()> {
    let mut stage = watchful("removed")?;
    stage.tcp("10.0.0.2:8080", "b2")?;
    let client = stage.client()?;
    let kept = client.connect(FRONTEND)?;
    assert_eq!(kept.line()?, "b1");
    // Away and back while a connection lives on: whatever is shown belongs to who is shown.
    let only = |name: &str, address: &str| json!({"spec": {"backends": [{"name": name, "address": address}]}});
    stage.agent.patch("/v1/services/shop", &only("b2", "10.0.0.2:8080"))?.expect_status(200);
    assert_eq!(stage.count("shop", "b2", "activeConnections")?, 0);
    assert_eq!(client.connect(FRONTEND)?.line()?, "b2");
    assert_eq!(kept.exchange("hello")?, "b1: hello");
    assert_eq!(kept.peer()?, FRONTEND.parse()?);
    stage.agent.patch("/v1/services/shop", &only("b1", ADDRESS))?.expect_status(200);
    drop(kept);
    assert_eq!(client.connect(FRONTEND)?.line()?, "b1");
    stage.count_is("shop", "b1", "activeConnections", 0)
}
