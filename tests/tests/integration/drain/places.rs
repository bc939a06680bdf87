//! Where connections are: with callers that nobody steers, and in every network namespace.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Client, Errno, Namespace, Server, Service, agent, program};

use super::{QUIET, closes_under_the_lock, connection_to, drain, ends, is_closed, operation, reaches};
use crate::stage::Stage;

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
    if closes_under_the_lock(&stage)? {
        assert_eq!(ended["closedInbound"], 1, "{ended}");
        assert_eq!(stranger.error(), Some(Errno::ECONNRESET));
    }
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

/// As on a host where each pod has a namespace: six that have the address of b1, each with a process.
fn pods(stage: &Stage) -> Result<Vec<(Namespace, Client)>> {
    let pods = (0..6).map(|_| {
        let pod = Namespace::new()?;
        pod.address("10.0.0.1".parse()?)?;
        let process = Client::start(Some(&stage.world.cgroup), Some(&pod))?;
        Ok((pod, process))
    });
    pods.collect()
}

/// However many namespaces are left out because they are empty, this one is not.
#[test]
fn callers_beside_many_namespaces_are_closed_one_after_the_other() -> Result<()> {
    let stage = Stage::weights("drain-caller", &[1, 1])?;
    let _pods = pods(&stage)?;
    let there = Namespace::new()?;
    let _link = stage.world.namespace.link(&there, ("10.1.0.1".parse()?, 24), ("10.1.0.2".parse()?, 24))?;
    there.ip("route add default via 10.1.0.1")?;
    let caller = Client::start(Some(&stage.world.cgroup), Some(&there))?;
    let (first, second) = (connection_to(&caller, "b1")?, connection_to(&caller, "b1")?);
    second.send("half of ")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "10m"}))?;
    is_closed(&first)?;
    thread::sleep(Duration::from_secs(1));
    assert_eq!(second.exchange("a line")?, "b1: half of a line");
    is_closed(&second)?;
    assert_eq!(ends(&stage, &id)?["phase"], "drained");
    Ok(())
}

/// One that was found empty is looked at again when somebody comes.
#[test]
fn a_stranger_comes_to_one_of_many_namespaces() -> Result<()> {
    let stage = Stage::weights("drain-pods", &[1, 1])?;
    let pods = pods(&stage)?;
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
