//! What applications do with sockets besides one connect: marks, other protocols, sockets used again. And who is left
//! alone.

use anyhow::Result;
use sluice_tests::{Client, Errno, Options, Service, client::Transport};

use crate::stage::{FRONTEND, Stage};

/// What `--mark` is when nobody says it.
pub const MARK: u32 = 0x51ce;

pub fn one(label: &str) -> Result<Stage> {
    Stage::weights(label, &[100])
}

#[test]
fn a_marked_socket_passes_untouched() -> Result<()> {
    let mut stage = one("mark")?;
    stage.tcp(FRONTEND, "original")?;
    stage.udp("10.0.0.1:8053", "dns")?;
    stage.udp("10.96.0.10:53", "original-dns")?;
    stage.put(&Service::new("dns", "10.96.0.10:53/udp").backend("dns", "10.0.0.1:8053", 1))?;
    let client = stage.client()?;
    let marked = Options::default().mark(MARK);
    assert_eq!(client.connect(FRONTEND)?.line()?, "b1");
    assert_eq!(client.connect_with(FRONTEND, &Options::default().mark(MARK + 1))?.line()?, "b1");
    assert_eq!(client.connect_with(FRONTEND, &marked)?.line()?, "original");
    assert_eq!(client.datagrams_with(&marked, Some("10.96.0.10:53"))?.exchange("x")?.0, "original-dns: x");
    let open = client.datagrams("0.0.0.0:0")?;
    assert_eq!(open.exchange_with("x", "10.96.0.10:53")?.0, "dns: x");
    open.mark(MARK)?;
    assert_eq!(open.exchange_with("x", "10.96.0.10:53")?.0, "original-dns: x");
    Ok(())
}

#[test]
fn only_processes_inside_the_cgroup_are_steered() -> Result<()> {
    let stage = one("outside")?;
    let outside = Client::start(None, Some(&stage.world.namespace))?;
    assert_eq!(outside.connect(FRONTEND).unwrap_err(), Errno::ENETUNREACH);
    let child = stage.world.cgroup.child("below")?;
    let below = Client::start(Some(&child), Some(&stage.world.namespace))?;
    assert_eq!(below.connect(FRONTEND)?.line()?, "b1");
    // A process that moves in is steered from its next connect on.
    stage.world.cgroup.adopt(outside.id())?;
    assert_eq!(outside.connect(FRONTEND)?.line()?, "b1");
    drop(below);
    Ok(())
}

#[test]
fn a_disconnected_socket_connects_through_a_frontend_again() -> Result<()> {
    let stage = Stage::weights("again", &[1, 1])?;
    let client = stage.client()?;
    let connection = client.connect(FRONTEND)?;
    let mut servers = vec![connection.line()?];
    for _ in 0..3 {
        connection.disconnect()?;
        connection.reconnect(FRONTEND)?;
        assert_eq!(connection.peer()?, FRONTEND.parse()?);
        servers.push(connection.line()?);
    }
    // Each connect is a connection of its own.
    let expected = if servers[0] == "b1" { ["b1", "b2", "b1", "b2"] } else { ["b2", "b1", "b2", "b1"] };
    assert_eq!(servers, expected);
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 2);
    let open = |backend| stage.count("shop", backend, "activeConnections");
    assert_eq!(open("b1")? + open("b2")?, 1);
    drop(connection);
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    stage.count_is("shop", "b2", "activeConnections", 0)
}

#[test]
fn a_socket_used_again_for_a_direct_connection_tells_the_truth() -> Result<()> {
    let mut stage = one("direct")?;
    stage.tcp("10.0.0.9:8080", "other")?;
    stage.tcp("[fd00::9]:8080", "other-six")?;
    let client = stage.client()?;
    for from in ["0.0.0.0:0", "10.0.0.1:0", "0.0.0.0:7777"] {
        // An address of its own, the same port as the backend's, and the very backend.
        for (direct, server) in [("10.0.0.9:8080", "other"), ("10.0.0.1:8080", "b1")] {
            let options = Options::default().from(from).reset_on_close();
            let connection = client.connect_with(FRONTEND, &options)?;
            assert_eq!((connection.line()?, connection.peer()?), ("b1".to_owned(), FRONTEND.parse()?));
            connection.disconnect()?;
            connection.reconnect(direct)?;
            assert_eq!(connection.line()?, server, "from {from}");
            assert_eq!(connection.peer()?, direct.parse()?, "from {from}");
            // It is nobody's steered connection any more.
            assert_eq!(stage.count("shop", "b1", "activeConnections")?, 0, "from {from} to {direct}");
        }
    }
    Ok(())
}

#[test]
fn a_connect_that_never_left_is_forgotten() -> Result<()> {
    let mut stage = one("never-left")?;
    stage.tcp("10.0.0.9:8080", "other")?;
    // There is no way to this backend: connect() fails before the first packet.
    stage.put(&Service::new("far", "10.96.0.11:80").backend("far", "10.77.0.1:8080", 1))?;
    let client = stage.client()?;
    let connection = client.connect(FRONTEND)?;
    connection.disconnect()?;
    assert_eq!(connection.reconnect("10.96.0.11:80").unwrap_err(), Errno::ENETUNREACH);
    connection.reconnect("10.0.0.9:8080")?;
    assert_eq!((connection.line()?, connection.peer()?), ("other".to_owned(), "10.0.0.9:8080".parse()?));
    assert_eq!(stage.count("far", "far", "activeConnections")?, 0);
    drop(connection);
    stage.count_is("far", "far", "activeConnections", 0)
}

#[test]
fn multipath_tcp_is_steered() -> Result<()> {
    let stage = Stage::weights("mptcp", &[1, 1])?;
    let client = stage.client()?;
    let mptcp = Options::default().transport(Transport::Mptcp);
    let mut servers = Vec::new();
    for _ in 0..4 {
        let connection = match client.connect_with(FRONTEND, &mptcp) {
            // A kernel may be built without it.
            Err(Errno::EPROTONOSUPPORT | Errno::ENOPROTOOPT) => return Ok(()),
            connection => connection?,
        };
        let server = connection.line()?;
        assert_eq!(connection.exchange("hello")?, format!("{server}: hello"));
        // The hook of getpeername() sees the multipath socket, connect() saw its first subflow: the application is told
        // where it really is.
        let backend = if server == "b1" { "10.0.0.1:8080" } else { "10.0.0.2:8080" };
        assert_eq!(connection.peer()?, backend.parse()?);
        servers.push(server);
    }
    servers.sort();
    assert_eq!(servers, ["b1", "b1", "b2", "b2"]);
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 2);
    stage.count_is("shop", "b1", "activeConnections", 0)
}

#[test]
fn tcp_fast_open_is_steered_and_tracked() -> Result<()> {
    let mut stage = Stage::new("fast-open")?;
    // Client and server, for all listeners from now on, and without the round that fetches a cookie first.
    stage.world.namespace.sysctl("ipv4/tcp_fastopen", "1543")?;
    let service = stage.service(&[1])?;
    stage.put(&service)?;
    let client = stage.client()?;
    let fast = Options::default().transport(Transport::FastOpen);
    let connection = client.connect_with(FRONTEND, &fast)?;
    connection.send("hello\n")?;
    assert_eq!((connection.line()?, connection.line()?), ("b1".to_owned(), "b1: hello".to_owned()));
    assert_eq!(connection.peer()?, FRONTEND.parse()?);
    let netstat = stage.world.namespace.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))?;
    assert_eq!(netstat_value(&netstat, "TCPFastOpenActive"), Some(1), "the first bytes went with the SYN");
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, 1);
    drop(connection);
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 1);
    Ok(())
}

/// A counter of /proc/net/netstat: a line of names, then a line of values.
fn netstat_value(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<&str> = text.lines().collect();
    lines.chunks(2).find_map(|pair| {
        let position = pair.first()?.split(' ').position(|word| word == name)?;
        pair.get(1)?.split(' ').nth(position)?.parse().ok()
    })
}
