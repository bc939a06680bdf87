//! Where connections are: with callers that nobody steers, and in every network namespace.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Client, Errno, Namespace, Service};

use super::{QUIET, closes_under_the_lock, connection_to, drain, ends, is_closed, operation, reaches};
use crate::stage::{Stage, weighted};

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
    assert_eq!((&ended["phase"], &ended["closedInbound"]), (&json!("drained"), &json!(1)), "{ended}");
    assert_eq!(stranger.line().err(), Some(Errno::ENODATA));
    // Reset, if that is wanted.
    stage.restore("shop/b1")?;
    stage.put(&weighted(&[1, 1]).set("closeAs", "abort"))?;
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!((stranger.line()?, stranger.exchange("hi")?), ("b1".into(), "b1: hi".into()));
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "closeInbound": "idle", "deadline": "3s"}))?;
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

/// Their own drain, or none, says what becomes of them.
#[test]
fn what_is_steered_is_not_closed_where_it_was_accepted() -> Result<()> {
    let stage = Stage::weights("two-services", &[1, 1])?;
    let other = Service::new("other", "10.96.0.11:80").set("protocol", "stream").backend("m1", "10.0.0.1:8080", 1);
    stage.put(&other)?;
    let (client, outside) = (stage.client()?, Client::start(None, Some(&stage.world.namespace))?);
    let stranger = outside.connect("10.0.0.1:8080")?;
    assert_eq!((stranger.line()?, stranger.exchange("hi")?), ("b1".into(), "b1: hi".into()));
    let stream = client.connect("10.96.0.11:80")?;
    assert_eq!((stream.line()?, stream.exchange("hi")?), ("b1".into(), "b1: hi".into()));
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "closeInbound": "idle", "deadline": "4s"}))?;
    let ended = ends(&stage, &id)?;
    // The process still serves the other service.
    assert_eq!(ended["phase"], "deadlineReached", "{ended}");
    assert_eq!(stream.exchange("still here")?, "b1: still here");
    assert_eq!(ended["closedInbound"], 1, "{ended}");
    assert_eq!(stranger.line().err(), Some(Errno::ENODATA));
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
