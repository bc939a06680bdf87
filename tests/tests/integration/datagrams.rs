//! Datagrams: flows of unconnected sockets stay with their backend, answers carry the right frontend, a zero moves them.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Service, system::eventually};

use crate::stage::{LIMIT, Stage};

pub const DNS: &str = "10.96.0.10:53";

/// Service "dns" on [`DNS`] with UDP backends b1, b2 ... of weight 1 on nodes n1, n2 ...
pub fn stage(label: &str, backends: usize) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    let mut service = Service::new("dns", "10.96.0.10:53/udp");
    for number in 1..=backends {
        let (name, address) = (format!("b{number}"), format!("10.0.0.{number}:8053"));
        stage.udp(&address, &name)?;
        service = service.backend_on(&format!("n{number}"), &name, &address, 1);
    }
    stage.put(&service)?;
    Ok(stage)
}

pub fn server(answer: (String, std::net::SocketAddr)) -> String {
    assert_eq!(answer.1, DNS.parse().unwrap());
    answer.0.trim_end_matches(": x").to_owned()
}

#[test]
fn a_flow_stays_with_its_backend() -> Result<()> {
    let stage = stage("flow", 3)?;
    let client = stage.client()?;
    let mut servers = BTreeMap::new();
    for _ in 0..6 {
        let socket = client.datagrams("0.0.0.0:0")?;
        let first = server(socket.exchange_with("x", DNS)?);
        for _ in 0..20 {
            assert_eq!(server(socket.exchange_with("x", DNS)?), first);
        }
        *servers.entry(first).or_insert(0) += 1;
    }
    // Flows are shared by weight, and counted once each.
    assert_eq!(servers, [("b1".to_owned(), 2), ("b2".to_owned(), 2), ("b3".to_owned(), 2)].into());
    assert_eq!(stage.count("dns", "b1", "newConnections")?, 2);
    Ok(())
}

#[test]
fn who_was_not_asked_is_shown_as_it_is() -> Result<()> {
    let stage = stage("stranger", 1)?;
    let client = stage.client()?;
    let socket = client.datagrams("127.0.0.1:7000")?;
    let to_lo = client.datagrams("127.0.0.1:0")?;
    assert_eq!(server(client.datagrams("0.0.0.0:0")?.exchange_with("x", DNS)?), "b1");
    to_lo.send_to("unasked", "127.0.0.1:7000")?;
    assert_eq!(socket.receive()?, ("unasked".to_owned(), to_lo.local()?));
    // A plain socket that speaks with the backend itself sees the backend.
    let direct = client.datagrams("0.0.0.0:0")?;
    assert_eq!(direct.exchange_with("x", "10.0.0.1:8053")?, ("b1: x".to_owned(), "10.0.0.1:8053".parse()?));
    Ok(())
}

#[test]
fn without_a_backend_a_datagram_is_refused_or_passes() -> Result<()> {
    let mut stage = stage("none", 1)?;
    stage.udp(DNS, "original")?;
    let client = stage.client()?;
    let flow = client.datagrams("0.0.0.0:0")?;
    assert_eq!(server(flow.exchange_with("x", DNS)?), "b1");
    stage.agent.post("/v1/nodes/n1/zero", &json!({"force": true}))?.expect_status(200);
    let errno = Errno::ECONNREFUSED;
    assert_eq!(flow.send_to("x", DNS).unwrap_err(), errno);
    assert_eq!(client.datagrams("0.0.0.0:0")?.send_to("x", DNS).unwrap_err(), errno);
    assert_eq!(client.datagrams_to(DNS).unwrap_err(), errno);
    stage.agent.patch("/v1/services/dns", &json!({"spec": {"onNoBackend": "pass"}}))?.expect_status(200);
    assert_eq!(server(flow.exchange_with("x", DNS)?), "original");
    assert_eq!(server(client.datagrams_to(DNS)?.exchange("x")?), "original");
    Ok(())
}

#[test]
fn a_connected_socket_may_send_elsewhere() -> Result<()> {
    let mut stage = stage("elsewhere", 1)?;
    stage.udp("10.0.0.9:8053", "other")?;
    stage.udp("10.0.0.8:53", "plain")?;
    stage.put(&Service::new("other", "10.96.0.11:53/udp").backend("other", "10.0.0.9:8053", 1))?;
    let client = stage.client()?;
    let socket = client.datagrams_to(DNS)?;
    assert_eq!(server(socket.exchange("x")?), "b1");
    assert_eq!(server(socket.exchange_with("x", DNS)?), "b1");
    // Answers of others do not reach a connected socket, but what it sends must arrive where it was meant to.
    socket.send_to("over there", "10.96.0.11:53")?;
    socket.send_to("and here", "10.0.0.8:53")?;
    eventually("both arrive", LIMIT, || {
        (stage.servers["other"].requests() == 1 && stage.servers["plain"].requests() == 1).then_some(())
    })?;
    assert_eq!(server(socket.exchange("x")?), "b1");
    assert_eq!(socket.peer()?, DNS.parse()?);
    Ok(())
}

#[test]
fn a_connected_socket_is_a_connection_until_it_is_closed() -> Result<()> {
    let stage = stage("gauge", 2)?;
    let client = stage.client()?;
    let sockets = [client.datagrams_to(DNS)?, client.datagrams_to(DNS)?];
    let first = server(sockets[0].exchange("x")?);
    assert_ne!(server(sockets[1].exchange("x")?), first);
    assert_eq!(stage.count("dns", "b1", "activeConnections")?, 1);
    assert_eq!(stage.count("dns", "b2", "activeConnections")?, 1);
    // A zero leaves existing connections alone: send() runs no hook, and sendto() does the same.
    stage.zero(&format!("dns/{first}"))?;
    assert_eq!(server(sockets[0].exchange("x")?), first);
    assert_eq!(server(sockets[0].exchange_with("x", DNS)?), first);
    assert_eq!(sockets[0].peer()?, DNS.parse()?);
    drop(sockets);
    stage.count_is("dns", "b1", "activeConnections", 0)?;
    stage.count_is("dns", "b2", "activeConnections", 0)
}

#[test]
fn a_connected_socket_can_be_used_again() -> Result<()> {
    let mut stage = stage("reuse", 2)?;
    stage.udp("10.0.0.9:53", "plain")?;
    let client = stage.client()?;
    let socket = client.datagrams_to(DNS)?;
    let first = server(socket.exchange("x")?);
    // Once more through the frontend: the next backend.
    socket.connect(DNS)?;
    let second = server(socket.exchange("x")?);
    assert_ne!(first, second);
    let open = |backend: &str| stage.count("dns", backend, "activeConnections");
    assert_eq!((open(&first)?, open(&second)?), (0, 1));
    // Elsewhere, and to the very backend: the application is told the truth.
    let backend = if second == "b1" { "10.0.0.1:8053" } else { "10.0.0.2:8053" };
    for (direct, name) in [("10.0.0.9:53", "plain"), (backend, second.as_str())] {
        socket.connect(direct)?;
        assert_eq!(socket.exchange("x")?, (format!("{name}: x"), direct.parse()?));
        assert_eq!(socket.peer()?, direct.parse()?);
        assert_eq!((open("b1")?, open("b2")?), (0, 0));
    }
    // Disconnected, it is a socket like any other.
    socket.connect(DNS)?;
    let third = server(socket.exchange("x")?);
    let third = if third == "b1" { "10.0.0.1:8053" } else { "10.0.0.2:8053" };
    socket.disconnect()?;
    assert_eq!(socket.peer().unwrap_err(), Errno::ENOTCONN);
    assert_eq!(socket.exchange_with("x", third)?.1, third.parse()?);
    server(socket.exchange_with("x", DNS)?);
    Ok(())
}
