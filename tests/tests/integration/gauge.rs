//! The number of open connections is right again after whatever tracking missed.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Load, Service, system::eventually};

use crate::{
    forge,
    stage::{FRONTEND, LIMIT, Stage, assert_all_answered},
};

const ADDRESS: &str = "10.0.0.1:8080";

/// An agent that compares its counters with the sockets all the time.
fn watchful(label: &str) -> Result<Stage> {
    let mut stage = Stage::with(label, |agent| agent.argument("--census-interval").argument("200ms"))?;
    let service = stage.service(&[1])?;
    stage.put(&service)?;
    Ok(stage)
}

#[test]
fn connections_whose_end_was_missed_are_found() -> Result<()> {
    let stage = watchful("missed")?;
    let client = stage.client()?;
    let kept = [client.connect(FRONTEND)?, client.connect(FRONTEND)?];
    stage.count_is("shop", "b1", "activeConnections", 2)?;
    // Five that were established and that nobody saw end, and three that never got an answer.
    forge::counters(&stage.agent, ADDRESS, |counters| {
        counters.opened += 8;
        counters.established += 5;
    })?;
    stage.count_is("shop", "b1", "activeConnections", 2)?;
    stage.count_is("shop", "b1", "connecting", 0)?;
    drop(kept);
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    assert_all_answered(&client.spread(FRONTEND, 20));
    stage.count_is("shop", "b1", "activeConnections", 0)
}

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
fn what_others_do_does_not_shake_a_count() -> Result<()> {
    const IDLE: u64 = 1000;
    let mut stage = watchful("shake")?;
    stage.tcp("10.0.0.2:8080", "b2")?;
    stage.put(&Service::new("busy", "10.96.0.11:80").backend("b2", "10.0.0.2:8080", 1))?;
    let client = stage.client()?;
    let idle: Vec<_> = (0..IDLE).map(|_| client.connect(FRONTEND)).collect::<Result<_, _>>()?;
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, IDLE);
    let other = stage.client()?;
    let busy = other.begin(&Load::connects("10.96.0.11:80").threads(4));
    // Many censuses, each of which takes several steps through the sockets.
    for _ in 0..10 {
        busy.reached(busy.attempts() + 500, LIMIT)?;
        assert_eq!(stage.count("shop", "b1", "activeConnections")?, IDLE);
    }
    assert_all_answered(&busy.stop());
    stage.count_is("busy", "b2", "activeConnections", 0)?;
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, IDLE);
    drop(idle);
    stage.count_is("shop", "b1", "activeConnections", 0)
}

#[test]
fn without_an_agent_the_kernel_goes_on_counting() -> Result<()> {
    let mut stage = watchful("down")?;
    let client = stage.client()?;
    let before: Vec<_> = (0..6).map(|_| client.connect(FRONTEND)).collect::<Result<_, _>>()?;
    stage.agent.kill()?;
    let during: Vec<_> = (0..3).map(|_| client.connect(FRONTEND)).collect::<Result<_, _>>()?;
    before.into_iter().skip(2).for_each(drop);
    stage.agent.start()?;
    stage.count_is("shop", "b1", "activeConnections", 3)?;
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 9);
    drop(during);
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
