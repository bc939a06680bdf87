//! Connections of which quiet says something else: streams, datagrams, MPTCP, and what the server has closed.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Options, Service, client::Transport};

use super::{QUIET, connection_to, connection_with, drain, ends, is_closed};
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

/// Keep-alive probes make a server acknowledge once more, which looks like the acknowledgement of a request. The next request
/// goes out in the tick in which the last answer came in, or the answer comes in that of its request: then the times are
/// equal, too.
#[test]
fn keepalive_probes_blur_no_request_and_no_answer() -> Result<()> {
    const EACH: usize = 12;
    let stage = Stage::weights("keepalive", &[1, 1])?;
    let client = stage.client()?;
    let probed = Options::default().keepalive_seconds(1);
    let open = || (0..EACH).map(|_| connection_with(&client, "b1", &probed)).collect::<Result<Vec<_>>>();
    let idle = open()?;
    let busy = open()?;
    for connection in &busy {
        assert_eq!(connection.exchange("hello")?, "b1: hello");
        connection.send("sleep 5000\n")?;
    }
    // The drain comes after the first probes.
    thread::sleep(Duration::from_millis(1500));
    let id = drain(&stage, "node/n1", &json!({"idleClose": QUIET, "deadline": "30s"}))?;
    let answers: Vec<_> = busy.iter().map(|connection| connection.line()).collect();
    let lost = answers.iter().filter(|answer| answer.is_err()).count();
    assert_eq!(lost, 0, "requests in flight were closed: {answers:?}");
    for connection in idle.iter().chain(&busy) {
        is_closed(connection)?;
    }
    let ended = ends(&stage, &id)?;
    assert_eq!((&ended["phase"], &ended["closedIdle"]), (&json!("drained"), &json!(2 * EACH)), "{ended}");
    Ok(())
}
