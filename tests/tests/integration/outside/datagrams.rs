//! Flows of datagrams and what the agent decides about them: several frontends, zeros, changed documents, weights.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use sluice_tests::{Client, Service};

use crate::{
    datagrams::{DNS, server, stage},
    forge,
    stage::Stage,
};

#[test]
fn one_socket_speaks_through_several_frontends() -> Result<()> {
    let mut stage = Stage::new("frontends")?;
    let mut frontends = Vec::new();
    for number in 1..=5 {
        let (name, address) = (format!("s{number}"), format!("10.0.0.{number}:8053"));
        let frontend = format!("10.96.2.{number}:53");
        stage.udp(&address, &name)?;
        stage.put(&Service::new(&name, &format!("{frontend}/udp")).backend("b", &address, 1))?;
        frontends.push((frontend, name));
    }
    let client = stage.client()?;
    let socket = client.datagrams("0.0.0.0:0")?;
    // All at once: the answers come in any order, each from the frontend that was asked.
    for (frontend, name) in &frontends {
        socket.send_to(&format!("to {name}"), frontend)?;
    }
    let mut answers = BTreeMap::new();
    for _ in &frontends {
        let (answer, source) = socket.receive()?;
        answers.insert(source.to_string(), answer);
    }
    let expected = frontends.iter().map(|(frontend, name)| (frontend.clone(), format!("{name}: to {name}"))).collect();
    assert_eq!(answers, expected);
    Ok(())
}

#[test]
fn two_frontends_may_share_a_backend() -> Result<()> {
    let mut stage = Stage::new("shared")?;
    stage.udp("10.0.0.1:8053", "one")?;
    for (name, frontend) in [("a", "10.96.2.1:53/udp"), ("b", "10.96.2.2:53/udp")] {
        stage.put(&Service::new(name, frontend).backend("b", "10.0.0.1:8053", 1))?;
    }
    let client = stage.client()?;
    let socket = client.datagrams("0.0.0.0:0")?;
    for frontend in ["10.96.2.1:53", "10.96.2.2:53", "10.96.2.1:53", "10.96.2.1:53", "10.96.2.2:53"] {
        assert_eq!(socket.exchange_with("x", frontend)?, ("one: x".to_owned(), frontend.parse()?));
    }
    Ok(())
}

#[test]
fn a_zero_moves_a_flow_with_its_next_datagram() -> Result<()> {
    let stage = stage("zero", 2)?;
    let client = stage.client()?;
    let socket = client.datagrams("0.0.0.0:0")?;
    let first = server(socket.exchange_with("x", DNS)?);
    let (other, node) = if first == "b1" { ("b2", "node/n1") } else { ("b1", "node/n2") };
    stage.zero(node)?;
    for _ in 0..5 {
        assert_eq!(server(socket.exchange_with("x", DNS)?), other);
    }
    // It stays there when the first is back: a flow is moved only by need.
    stage.restore(node)?;
    assert_eq!(server(socket.exchange_with("x", DNS)?), other);
    stage.zero(&format!("dns/{other}"))?;
    assert_eq!(server(socket.exchange_with("x", DNS)?), first);
    Ok(())
}

#[test]
fn answers_keep_a_flow_with_its_backend() -> Result<()> {
    let seconds = |seconds| Duration::from_secs(seconds);
    let stage = stage("answers", 3)?;
    let client = stage.client()?;
    let flows = || stage.status("dns")?["newConnections"].as_u64().context("a number");
    // Nobody read an answer: after half a minute the flow is another.
    let silent = client.datagrams("0.0.0.0:0")?;
    silent.send_to("x", DNS)?;
    forge::age_flows(&stage.agent, seconds(25))?;
    silent.send_to("x", DNS)?;
    assert_eq!(flows()?, 1);
    forge::age_flows(&stage.agent, seconds(31))?;
    silent.send_to("x", DNS)?;
    assert_eq!(flows()?, 2);
    // With answers it may rest for two minutes, and as long as it likes while they come.
    let answered = client.datagrams("0.0.0.0:0")?;
    let first = server(answered.exchange_with("x", DNS)?);
    forge::age_flows(&stage.agent, seconds(110))?;
    assert_eq!((server(answered.exchange_with("x", DNS)?), flows()?), (first.clone(), 3));
    forge::age_senders(&stage.agent, seconds(600))?;
    assert_eq!((server(answered.exchange_with("x", DNS)?), flows()?), (first.clone(), 3));
    forge::age_flows(&stage.agent, seconds(121))?;
    assert_ne!(server(answered.exchange_with("x", DNS)?), first);
    assert_eq!(flows()?, 4);
    Ok(())
}

#[test]
fn a_flow_follows_the_document() -> Result<()> {
    let mut stage = stage("follow", 1)?;
    stage.udp("10.0.0.9:8053", "new")?;
    stage.udp(DNS, "original")?;
    let client = stage.client()?;
    let socket = client.datagrams("0.0.0.0:0")?;
    assert_eq!(server(socket.exchange_with("x", DNS)?), "b1");
    stage.put(&Service::new("dns", "10.96.0.10:53/udp").backend("b1", "10.0.0.9:8053", 1))?;
    assert_eq!(server(socket.exchange_with("x", DNS)?), "new");
    stage.agent.delete("/v1/services/dns")?.expect_status(204);
    assert_eq!(server(socket.exchange_with("x", DNS)?), "original");
    Ok(())
}

#[test]
fn many_flows_of_many_processes_are_shared_by_weight() -> Result<()> {
    let stage = stage("many", 2)?;
    stage.agent.patch("/v1/services/dns/backends/b1", &json!({"weight": 3}))?.expect_status(200);
    let clients = [stage.client()?, stage.client()?];
    let mut counts = BTreeMap::new();
    for number in 0..100 {
        let client: &Client = &clients[number % 2];
        let socket = client.datagrams("0.0.0.0:0")?;
        *counts.entry(server(socket.exchange_with("x", DNS)?)).or_insert(0) += 1;
    }
    assert_eq!(counts, [("b1".to_owned(), 75), ("b2".to_owned(), 25)].into());
    Ok(())
}
