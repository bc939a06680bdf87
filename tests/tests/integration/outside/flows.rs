//! Flows that a service keeps, and what the agent decides about them: whose they are, how long they may rest, and over
//! restarts of the agent.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Service, system::eventually};

use crate::{
    drain::{drain, ends, reaches},
    flows::{FOUR, answers, flows, service, session, stage},
    forge,
    stage::LIMIT,
};

#[test]
fn a_flow_stays_with_a_backend_that_is_zeroed_while_answers_come() -> Result<()> {
    let stage = stage("flow-zero", &[FOUR])?;
    let client = stage.client()?;
    let (alive, silent) = (session(&client, FOUR, "b1")?, session(&client, FOUR, "b1")?);
    let zero = stage.zero("quic/b1")?;
    assert_eq!((&zero["newConnectionsSinceZero"], &zero["flows"]), (&json!(0), &json!(2)), "{zero}");
    forge::age_flows(&stage.agent, Duration::from_secs(110))?;
    assert_eq!(answers(&alive, FOUR)?, "b1");
    // Sending alone keeps nothing with a server that may be dead.
    silent.send_to("x", FOUR.frontend)?;
    forge::age_flows(&stage.agent, Duration::from_secs(11))?;
    assert_eq!(flows(&stage, "n1")?, 1);
    assert_eq!(answers(&alive, FOUR)?, "b1");
    // That answer to the first server's datagram is there still.
    assert_eq!(silent.receive()?.0, "b1: x");
    Ok(())
}

#[test]
fn only_a_stream_keeps_flows_and_only_where_nothing_speaks_against_the_backend() -> Result<()> {
    let stage = stage("flow-keep", &[FOUR])?;
    let client = stage.client()?;
    let socket = session(&client, FOUR, "b1")?;
    let patch = |path: &str, patch| stage.agent.patch(path, &patch).map(|answer| drop(answer.expect_status(200)));
    let backend = "/v1/services/quic/backends/b1";
    patch(backend, json!({"weight": 0}))?;
    assert_eq!(answers(&socket, FOUR)?, "b1", "without weight");
    // Requests and answers in turn: the next one may go anywhere.
    patch("/v1/services/quic", json!({"spec": {"protocol": "request"}}))?;
    assert_eq!(answers(&socket, FOUR)?, "b2", "a request");
    patch(backend, json!({"weight": 1}))?;
    patch("/v1/services/quic", json!({"spec": {"protocol": "stream"}}))?;
    let socket = session(&client, FOUR, "b1")?;
    let id = drain(&stage, "quic/b1", &json!({}))?;
    reaches(&stage, &id, |operation| operation["remaining"]["flows"] == 1)?;
    assert_eq!(answers(&socket, FOUR)?, "b1");
    // A backend that is removed keeps nothing.
    let without = service(FOUR).set("backends", json!([{"name": "b2", "address": FOUR.backends[1], "weight": 1}]));
    stage.put(&without)?;
    assert_eq!(answers(&socket, FOUR)?, "b2", "removed");
    Ok(())
}

#[test]
fn a_removed_backend_leaves_no_sender_and_no_flow() -> Result<()> {
    let mut stage = stage("flow-gone", &[FOUR])?;
    stage.udp("10.0.0.3:53", "dns")?;
    let dns = Service::new("dns", "10.96.0.10:53/udp").backend("b", "10.0.0.3:53", 1);
    stage.put(&dns)?;
    let client = stage.client()?;
    let (query, stream) = (client.datagrams_to("10.96.0.10:53")?, client.datagrams_to(FOUR.frontend)?);
    query.exchange("x")?;
    let server = stream.exchange("x")?.0;
    let unconnected = client.datagrams("0.0.0.0:0")?;
    unconnected.exchange_with("x", "10.96.0.10:53")?;
    assert_eq!(
        unconnected.exchange_with("x", "10.0.0.3:53")?.1,
        "10.96.0.10:53".parse()?,
        "the frontend that was asked"
    );
    // Under another name the backend is there still.
    stage.agent.delete("/v1/services/dns")?.expect_status(204);
    stage.put(&Service::new("names", "10.96.0.11:53/udp").backend("b", "10.0.0.3:53", 1))?;
    stage.agent.delete("/v1/services/quic")?.expect_status(204);
    let (doomed, removed) = (client.datagrams_to("10.96.0.11:53")?, Instant::now());
    doomed.exchange("x")?;
    while removed.elapsed() < Duration::from_secs(3) {
        assert_eq!((query.error(), stream.error()), (None, None));
        thread::sleep(Duration::from_millis(200));
    }
    stage.agent.delete("/v1/services/names")?.expect_status(204);
    eventually("the socket is closed", LIMIT, || doomed.error()).map(|error| assert_eq!(error, Errno::ECONNABORTED))?;
    assert_eq!(doomed.send("x").unwrap_err(), Errno::EDESTADDRREQ);
    assert_eq!(stream.exchange("x")?.0, server, "it carries a stream");
    // Whoever asks the former backend later sees that one.
    let direct = || unconnected.exchange_with("x", "10.0.0.3:53").ok().filter(|(_, from)| from.port() == 53);
    let is_itself = || direct().filter(|(_, from)| from.ip().to_string() == "10.0.0.3").map(drop);
    eventually("the flow is forgotten", LIMIT, is_itself)
}

#[test]
fn a_deadline_moves_flows_when_an_agent_is_back() -> Result<()> {
    let mut stage = stage("flow-kill", &[FOUR])?;
    let client = stage.client()?;
    let socket = session(&client, FOUR, "b1")?;
    let id = drain(&stage, "quic/b1", &json!({"deadline": "1s"}))?;
    stage.agent.kill()?;
    thread::sleep(Duration::from_millis(1200));
    assert_eq!(answers(&socket, FOUR)?, "b1", "no agent, no end");
    stage.agent.start()?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["flows"]), (&json!("deadlineReached"), &json!(1)), "{ended}");
    assert_eq!(answers(&socket, FOUR)?, "b2");
    // It is over for the next agent, too; and a restored backend takes flows again.
    stage.agent.kill()?;
    stage.agent.start()?;
    stage.restore("quic/b1")?;
    let again = session(&client, FOUR, "b1")?;
    stage.zero("quic/b1")?;
    assert_eq!(answers(&again, FOUR)?, "b1", "a zero without a deadline");
    Ok(())
}

#[test]
fn a_service_says_how_long_its_flows_may_rest() -> Result<()> {
    let stage = stage("flow-timeout", &[FOUR])?;
    let client = stage.client()?;
    let seconds = Duration::from_secs;
    for (timeout, rest, too_long) in [("10s", 9, 11), ("10m", 590, 601)] {
        stage.put(&service(FOUR).set("flowTimeout", timeout))?;
        let socket = session(&client, FOUR, "b1")?;
        let picked = stage.count("quic", "b1", "newConnections")?;
        forge::age_flows(&stage.agent, seconds(rest))?;
        assert_eq!(answers(&socket, FOUR)?, "b1");
        assert_eq!(stage.count("quic", "b1", "newConnections")?, picked, "{timeout}: the same flow");
        forge::age_flows(&stage.agent, seconds(too_long))?;
        let all = |status: serde_json::Value| status["newConnections"].as_u64().expect("a number");
        let before = all(stage.status("quic")?);
        answers(&socket, FOUR)?;
        assert_eq!(all(stage.status("quic")?), before + 1, "{timeout}: another flow");
    }
    let refused = |service: &Service| -> Result<String> {
        let answer = stage.agent.put("/v1/services/quic", &service.json())?.expect_status(422).json();
        assert_eq!(answer["field"], "spec.flowTimeout", "{answer}");
        Ok(answer["detail"].as_str().expect("a sentence").to_owned())
    };
    for wrong in ["0s", "999ms", "25h"] {
        let said = refused(&service(FOUR).set("flowTimeout", wrong))?;
        assert!(said.contains("from 1s to 24h") || said.contains("from 1s to 86400s"), "{said}");
    }
    let tcp = service(FOUR).set("frontends", json!(["10.96.0.20:443"])).set("flowTimeout", "1m");
    assert!(refused(&tcp)?.contains("no UDP frontend"));
    Ok(())
}
