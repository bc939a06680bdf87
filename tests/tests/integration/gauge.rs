//! The number of open connections is right again after whatever tracking missed.

use anyhow::Result;
use sluice_tests::{Load, Service};

use crate::{
    forge,
    stage::{FRONTEND, LIMIT, Stage, assert_all_answered},
};

pub const ADDRESS: &str = "10.0.0.1:8080";

/// An agent that compares its counters with the sockets all the time.
pub fn watchful(label: &str) -> Result<Stage> {
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
