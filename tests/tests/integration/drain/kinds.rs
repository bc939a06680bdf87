//! Connections of which quiet says something else: streams, datagrams, MPTCP, and what the server has closed.

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Options, Service, client::Transport};

use super::{QUIET, connection_to, drain, ends, is_closed};
use crate::stage::{FRONTEND, Stage};

#[test]
fn connected_datagram_sockets_are_closed_and_unconnected_ones_are_not() -> Result<()> {
    let mut stage = Stage::new("drain-udp")?;
    for (number, name) in [(1, "b1"), (2, "b2")] {
        stage.udp(&format!("10.0.0.{number}:53"), name)?;
    }
    let service = Service::new("dns", "10.96.0.10:53/udp").backend_on("n1", "b1", "10.0.0.1:53", 1).backend_on(
        "n2",
        "b2",
        "10.0.0.2:53",
        1,
    );
    stage.put(&service)?;
    let client = stage.client()?;
    let sockets: Vec<_> = (0..4).map(|_| client.datagrams_to("10.96.0.10:53")).collect::<Result<_, _>>()?;
    let (leaving, staying): (Vec<_>, Vec<_>) =
        sockets.into_iter().partition(|socket| socket.exchange("q").expect("an answer").0.starts_with("b1"));
    assert_eq!((leaving.len(), staying.len()), (2, 2));
    let unconnected: Vec<_> = (0..2).map(|_| client.datagrams("0.0.0.0:0")).collect::<Result<_, _>>()?;
    for socket in &unconnected {
        socket.exchange_with("q", "10.96.0.10:53")?;
    }
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(2)), "{ended}");
    for socket in &leaving {
        assert_eq!(socket.error(), Some(Errno::ECONNABORTED));
        assert_eq!(socket.send("more").unwrap_err(), Errno::EDESTADDRREQ);
    }
    for socket in &staying {
        assert!(socket.exchange("again")?.0.starts_with("b2"));
    }
    for socket in &unconnected {
        assert!(socket.exchange_with("again", "10.96.0.10:53")?.0.starts_with("b2"));
    }
    Ok(())
}

/// Its owner would not learn that its only path is gone.
#[test]
fn multipath_connections_are_kept_to_the_deadline() -> Result<()> {
    let stage = Stage::weights("drain-mptcp", &[1, 1])?;
    let client = stage.client()?;
    let mptcp = Options::default().transport(Transport::Mptcp);
    let mut kept = Vec::new();
    for _ in 0..2 {
        let connection = match client.connect_with(FRONTEND, &mptcp) {
            // A kernel may be built without it.
            Err(Errno::EPROTONOSUPPORT | Errno::ENOPROTOOPT) => return Ok(()),
            connection => connection?,
        };
        let server = connection.line()?;
        assert_eq!(connection.exchange("hello")?, format!("{server}: hello"));
        kept.push((server, connection));
    }
    let plain = connection_to(&client, "b1")?;
    let id = drain(&stage, "shop/b1", &json!({"idleClose": QUIET, "deadline": "3s"}))?;
    is_closed(&plain)?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["remaining"]["idle"]), (&json!("deadlineReached"), &json!(1)), "{ended}");
    for (server, connection) in &kept {
        assert_eq!(connection.exchange("still here")?, format!("{server}: still here"));
    }
    Ok(())
}

#[test]
fn what_the_server_has_closed_is_no_request() -> Result<()> {
    let stage = Stage::weights("hung-up", &[1, 1])?;
    let client = stage.client()?;
    let pooled = connection_to(&client, "b1")?;
    // As a server does that tires of an idle connection; the pool has not looked yet.
    pooled.send("close\n")?;
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET}))?;
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(1)), "{ended}");
    Ok(())
}
