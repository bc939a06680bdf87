//! Every hook with every kind of address: IPv4, IPv6, IPv4 through an IPv6 socket, and the wildcard, which stands for
//! the loopback. The application always sees the address that it asked for.

use anyhow::Result;
use sluice_tests::{Errno, Options, Service};

use crate::stage::Stage;

/// What is dialled, by a socket bound to what, who answers, and the peer that the application sees.
type Row = (&'static str, &'static str, Option<&'static str>, &'static str, &'static str);

/// Frontends of both protocols, each with one backend.
const FRONTENDS: [(&str, &str, &str); 5] = [
    ("four", "10.96.0.10:80", "10.0.0.1:8080"),
    ("six", "[fd00:96::10]:80", "[fd00::1]:8080"),
    ("near-four", "127.0.0.1:80", "10.0.0.2:8080"),
    ("near-six", "[::1]:80", "[fd00::2]:8080"),
    ("own", "10.9.0.50:80", "10.0.0.3:8080"),
];

const ROWS: [Row; 17] = [
    ("IPv4", "10.96.0.10:80", None, "four", "10.96.0.10:80"),
    ("IPv4, bound to the wildcard", "10.96.0.10:80", Some("0.0.0.0:0"), "four", "10.96.0.10:80"),
    ("IPv4, bound to an address", "10.96.0.10:80", Some("10.9.0.50:0"), "four", "10.96.0.10:80"),
    ("mapped", "[::ffff:10.96.0.10]:80", None, "four", "[::ffff:10.96.0.10]:80"),
    ("mapped, bound to the wildcard", "[::ffff:10.96.0.10]:80", Some("[::]:0"), "four", "[::ffff:10.96.0.10]:80"),
    (
        "mapped, bound to an address",
        "[::ffff:10.96.0.10]:80",
        Some("[::ffff:10.9.0.50]:0"),
        "four",
        "[::ffff:10.96.0.10]:80",
    ),
    ("IPv6", "[fd00:96::10]:80", None, "six", "[fd00:96::10]:80"),
    ("IPv6, bound to the wildcard", "[fd00:96::10]:80", Some("[::]:0"), "six", "[fd00:96::10]:80"),
    ("IPv6, bound to an address", "[fd00:96::10]:80", Some("[fd00:9::50]:0"), "six", "[fd00:96::10]:80"),
    ("loopback", "127.0.0.1:80", None, "near-four", "127.0.0.1:80"),
    ("IPv4 wildcard", "0.0.0.0:80", None, "near-four", "127.0.0.1:80"),
    ("IPv4 wildcard, bound to the wildcard", "0.0.0.0:80", Some("0.0.0.0:0"), "near-four", "127.0.0.1:80"),
    ("IPv6 wildcard", "[::]:80", None, "near-six", "[::1]:80"),
    ("IPv6 wildcard, bound to the wildcard", "[::]:80", Some("[::]:0"), "near-six", "[::1]:80"),
    ("mapped wildcard", "[::ffff:0.0.0.0]:80", None, "near-four", "[::ffff:127.0.0.1]:80"),
    (
        "IPv6 wildcard, bound to a mapped address",
        "[::]:80",
        Some("[::ffff:127.0.0.1]:0"),
        "near-four",
        "[::ffff:127.0.0.1]:80",
    ),
    // The kernel takes the wildcard for the socket's own address where it has one.
    ("IPv4 wildcard, bound to an address", "0.0.0.0:80", Some("10.9.0.50:0"), "own", "10.9.0.50:80"),
];

fn stage(label: &str, suffix: &str) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    for address in ["10.9.0.50", "fd00:9::50"] {
        stage.world.namespace.address(address.parse()?)?;
    }
    for (name, frontend, backend) in FRONTENDS {
        if suffix.is_empty() {
            stage.tcp(backend, name)?
        } else {
            stage.udp(backend, name)?
        }
        stage.put(&Service::new(name, &format!("{frontend}{suffix}")).backend(name, backend, 100))?;
    }
    Ok(stage)
}

fn options(from: Option<&str>) -> Options {
    from.into_iter().fold(Options::default(), |options, from| options.from(from))
}

/// Runs every row, and reports all that differ.
fn check(rows: &[Row], mut row: impl FnMut(&Row) -> Result<(String, String), Errno>) {
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|expected| {
            let (what, _, _, server, peer) = expected;
            let found = row(expected);
            (found != Ok(((*server).to_owned(), (*peer).to_owned()))).then(|| format!("{what}: {found:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn tcp_connects_and_sees_the_frontend_as_its_peer() -> Result<()> {
    let stage = stage("rows-tcp", "")?;
    let client = stage.client()?;
    check(&ROWS, |(_, to, from, ..)| {
        let connection = client.connect_with(to, &options(*from))?;
        Ok((connection.line()?, connection.peer()?.to_string()))
    });
    Ok(())
}

#[test]
fn a_connected_udp_socket_sees_the_frontend_as_its_peer_and_as_the_source() -> Result<()> {
    let stage = stage("rows-udp", "/udp")?;
    let client = stage.client()?;
    check(&ROWS, |(what, to, from, ..)| {
        let socket = client.datagrams_with(&options(*from), Some(to))?;
        let peer = socket.peer()?;
        let (answer, source) = socket.exchange("hello")?;
        assert_eq!(source, peer, "{what}: the source of the answer and the peer");
        Ok((answer.trim_end_matches(": hello").to_owned(), peer.to_string()))
    });
    Ok(())
}

#[test]
fn an_unconnected_udp_socket_sees_the_frontend_as_the_source() -> Result<()> {
    let stage = stage("rows-sendto", "/udp")?;
    let client = stage.client()?;
    check(&ROWS, |(_, to, from, ..)| {
        let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
        let socket = client.datagrams(from.unwrap_or(any))?;
        let (answer, source) = socket.exchange_with("hello", to)?;
        Ok((answer.trim_end_matches(": hello").to_owned(), source.to_string()))
    });
    Ok(())
}

#[test]
fn an_ipv6_frontend_may_have_ipv4_backends() -> Result<()> {
    let mut stage = Stage::new("six-four")?;
    stage.tcp("10.0.0.1:8080", "four")?;
    stage.tcp("[fd00::1]:8080", "six")?;
    let service = Service::new("mixed", "[fd00:96::10]:80");
    stage.put(&service.backend("four", "10.0.0.1:8080", 1).backend("six", "[fd00::1]:8080", 1))?;
    let client = stage.client()?;
    let mut answers = Vec::new();
    for _ in 0..4 {
        let connection = client.connect("[fd00:96::10]:80")?;
        assert_eq!(connection.peer()?, "[fd00:96::10]:80".parse()?);
        answers.push(connection.line()?);
        assert_eq!(connection.exchange("hello")?, format!("{}: hello", answers.last().unwrap()));
    }
    answers.sort();
    assert_eq!(answers, ["four", "four", "six", "six"]);
    Ok(())
}
