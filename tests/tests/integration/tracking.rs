//! Every steered connection from its first packet to its end, per backend: how many, how they failed, how long they took.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Errno, Load, Namespace, Options, Service, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered};

/// One backend at this address, which need not exist, as service "shop".
fn lonely(label: &str, address: &str) -> Result<Stage> {
    let stage = Stage::new(label)?;
    stage.put(&Service::new("shop", FRONTEND).backend("b1", address, 1))?;
    Ok(stage)
}

/// A second namespace behind 10.8.0.2, and its device.
fn neighbour(stage: &Stage) -> Result<(Namespace, String)> {
    let there = Namespace::new()?;
    let link = stage.world.namespace.link(&there, ("10.8.0.1".parse()?, 24), ("10.8.0.2".parse()?, 24))?;
    Ok((there, link.here))
}

fn failures(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    for reason in ["refused", "timed_out", "unreachable", "abandoned", "no_backend"] {
        let labels = [("service", "shop"), ("reason", reason)];
        let count = stage.agent.metric("sluice_connect_failures_total", &labels)?.unwrap_or(0.0);
        if count > 0.0 {
            counts.insert(reason.to_owned(), count as u64);
        }
    }
    Ok(counts)
}

/// Waits until exactly these failures are counted.
pub fn failures_are(stage: &Stage, expected: &[(&str, u64)]) -> Result<()> {
    let expected: BTreeMap<String, u64> =
        expected.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    let mut last = BTreeMap::new();
    let reached = eventually("failures are counted", LIMIT, || {
        last = failures(stage).ok()?;
        (last == expected).then_some(())
    });
    reached.map_err(|error| error.context(format!("{last:?}, expected {expected:?}")))
}

#[test]
fn attempts_established_and_active_are_counted() -> Result<()> {
    let stage = Stage::weights("counts", &[1, 1])?;
    let client = stage.client()?;
    let mut kept = Vec::new();
    for _ in 0..6 {
        let connection = client.connect(FRONTEND)?;
        connection.line()?;
        kept.push(connection);
    }
    for backend in ["b1", "b2"] {
        assert_eq!(stage.count("shop", backend, "newConnections")?, 3);
        assert_eq!(stage.count("shop", backend, "activeConnections")?, 3);
        assert_eq!(stage.count("shop", backend, "connectFailures")?, 0);
        let labels = [("service", "shop"), ("backend", backend)];
        assert_eq!(stage.metric("sluice_connections_total", &labels)?, 3.0);
        assert_eq!(stage.metric("sluice_connections", &[labels[0], labels[1], ("state", "active")])?, 3.0);
    }
    kept.truncate(1);
    let open = || -> Option<u64> {
        let count = |backend| stage.count("shop", backend, "activeConnections").ok();
        Some(count("b1")? + count("b2")?)
    };
    eventually("the closes are counted", LIMIT, || (open()? == 1).then_some(()))?;
    // A process that is killed closes what it had.
    drop(kept);
    let other = stage.client()?;
    let connections: Vec<_> = (0..4).map(|_| other.connect(FRONTEND)).collect::<Result<_, _>>()?;
    eventually("they are counted", LIMIT, || (open()? == 4).then_some(()))?;
    nix_kill(other.id())?;
    eventually("they are gone", LIMIT, || (open()? == 0).then_some(()))?;
    connections.into_iter().for_each(std::mem::forget);
    assert_eq!(stage.metric("sluice_connections_total", &[("service", "shop")])?, 10.0);
    assert_eq!(failures(&stage)?, BTreeMap::new());
    Ok(())
}

fn nix_kill(process: u32) -> Result<()> {
    std::process::Command::new("kill").args(["-9", &process.to_string()]).status()?;
    Ok(())
}

#[test]
fn a_closed_port_is_refused() -> Result<()> {
    let stage = lonely("refused", "127.0.0.1:9")?;
    let client = stage.client()?;
    let report = client.spread(FRONTEND, 5);
    assert_eq!(report.errors(), [("ECONNREFUSED".to_owned(), 5)].into());
    failures_are(&stage, &[("refused", 5)])?;
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 5);
    assert_eq!(stage.count("shop", "b1", "connectFailures")?, 5);
    assert_eq!(stage.count("shop", "b1", "activeConnections")?, 0);
    Ok(())
}

#[test]
fn a_backend_that_never_answers_times_out() -> Result<()> {
    let stage = lonely("timed-out", "10.8.0.77:80")?;
    let (_there, device) = neighbour(&stage)?;
    // Frames to an address that nobody has are dropped without a word.
    stage.world.namespace.ip(&format!("neighbour add 10.8.0.77 lladdr 02:00:00:00:00:77 dev {device}"))?;
    stage.world.namespace.sysctl("ipv4/tcp_syn_retries", "1")?;
    let client = stage.client()?;
    let patient = Options::default().timeout_millis(600_000);
    let load = client.begin(&Load::connects(FRONTEND).options(patient).count(1));
    let connecting = [("service", "shop"), ("backend", "b1"), ("state", "connecting")];
    eventually("the connect is seen on its way", LIMIT, || {
        (stage.metric("sluice_connections", &connecting).ok()? == 1.0).then_some(())
    })?;
    load.reached(1, LIMIT)?;
    assert_eq!(load.stop().errors(), [("ETIMEDOUT".to_owned(), 1)].into());
    failures_are(&stage, &[("timed_out", 1)])?;
    assert_eq!(stage.metric("sluice_connections", &connecting)?, 0.0);
    // The SYN was sent again: once, or more often where the kernel adds its linear timeouts (6.5).
    assert!(stage.metric("sluice_retransmits_total", &[("service", "shop"), ("backend", "b1")])? >= 1.0);
    Ok(())
}

#[test]
fn a_backend_that_is_not_there_is_unreachable() -> Result<()> {
    // One behind a device whose other end does not know the address, and one to which there is no way at all.
    let stage = lonely("unreachable", "10.8.0.78:80")?;
    let (_there, _device) = neighbour(&stage)?;
    let client = stage.client()?;
    let patient = Options::default().timeout_millis(600_000);
    assert_eq!(client.connect_with(FRONTEND, &patient).unwrap_err(), Errno::EHOSTUNREACH);
    failures_are(&stage, &[("unreachable", 1)])?;
    stage.put(&Service::new("shop", FRONTEND).backend("b2", "10.77.0.1:80", 1))?;
    assert_eq!(client.connect(FRONTEND).unwrap_err(), Errno::ENETUNREACH);
    eventually("it is counted", LIMIT, || (stage.count("shop", "b2", "connectFailures").ok()? == 1).then_some(()))?;
    Ok(())
}

#[test]
fn a_caller_that_gives_up_is_counted_as_such() -> Result<()> {
    let stage = lonely("abandoned", "10.8.0.77:80")?;
    let (_there, device) = neighbour(&stage)?;
    stage.world.namespace.ip(&format!("neighbour add 10.8.0.77 lladdr 02:00:00:00:00:77 dev {device}"))?;
    let client = stage.client()?;
    let hasty = Options::default().timeout_millis(100);
    assert_eq!(client.connect_with(FRONTEND, &hasty).unwrap_err(), Errno::ETIMEDOUT);
    failures_are(&stage, &[("abandoned", 1)])
}

#[test]
fn a_reset_by_the_backend_is_told_from_a_close() -> Result<()> {
    let stage = Stage::weights("reset", &[1])?;
    let client = stage.client()?;
    for (line, errno) in [("close", Errno::ENODATA), ("reset", Errno::ECONNRESET)] {
        let connection = client.connect(FRONTEND)?;
        connection.line()?;
        assert_eq!(connection.exchange(line).unwrap_err(), errno);
    }
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    assert_eq!(stage.metric("sluice_resets_total", &[("service", "shop"), ("backend", "b1")])?, 1.0);
    // A client's own reset is none of the backend's.
    let reset = Options::default().reset_on_close();
    assert_all_answered(&client.run(&Load::connects(FRONTEND).options(reset).count(5)));
    stage.count_is("shop", "b1", "activeConnections", 0)?;
    assert_eq!(stage.metric("sluice_resets_total", &[("service", "shop")])?, 1.0);
    assert_eq!(failures(&stage)?, BTreeMap::new());
    Ok(())
}

#[test]
fn times_are_measured() -> Result<()> {
    let stage = Stage::weights("times", &[1, 1])?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 40));
    for backend in ["b1", "b2"] {
        stage.count_is("shop", backend, "activeConnections", 0)?;
        let labels = [("service", "shop"), ("backend", backend)];
        let (sum, count) =
            (stage.metric("sluice_rtt_seconds_sum", &labels)?, stage.metric("sluice_rtt_seconds_count", &labels)?);
        assert!(count >= 20.0 && sum > 0.0 && sum / count < 1.0, "{sum} s in {count} readings");
    }
    let shop = [("service", "shop")];
    for histogram in ["sluice_connect_duration_seconds", "sluice_connection_duration_seconds"] {
        let value = |part: &str, labels: &[(&str, &str)]| stage.metric(&format!("{histogram}_{part}"), labels);
        assert_eq!(value("count", &shop)?, 40.0, "{histogram}");
        assert_eq!(value("bucket", &[("service", "shop"), ("le", "+Inf")])?, 40.0, "{histogram}");
        assert!(value("sum", &shop)? >= 0.0, "{histogram}");
    }
    // One that lasts is seen to last.
    let connection = client.connect(FRONTEND)?;
    connection.line()?;
    connection.exchange("sleep 300")?;
    let before = stage.metric("sluice_connection_duration_seconds_sum", &shop)?;
    drop(connection);
    eventually("it has ended", LIMIT, || {
        let sum = stage.metric("sluice_connection_duration_seconds_sum", &shop).ok()?;
        (sum >= before + 0.3).then_some(())
    })?;
    Ok(())
}

#[test]
fn connections_are_listed_with_their_process_and_what_they_do() -> Result<()> {
    let stage = Stage::weights("list", &[1, 1])?;
    let client = stage.client()?;
    let kept: Vec<_> = (0..4).map(|_| client.connect(FRONTEND)).collect::<Result<_, _>>()?;
    let servers: Vec<String> = kept.iter().map(|connection| connection.line()).collect::<Result<_, _>>()?;
    let list = |query: &str| -> Result<Vec<Value>> {
        let answer = stage.agent.get(&format!("/v1/connections?{query}"))?.expect_status(200).json();
        Ok(answer["items"].as_array().unwrap().clone())
    };
    let all = list("service=shop")?;
    assert_eq!(all.len(), 4, "{all:?}");
    for found in &all {
        assert_eq!((&found["pid"], &found["frontend"]), (&json!(client.id()), &json!(FRONTEND)), "{found}");
        assert_eq!((&found["state"], &found["protocol"]), (&json!("established"), &json!("tcp")), "{found}");
        assert!(found["command"].as_str().is_some_and(|command| command.contains("sluice-test")), "{found}");
        let local: std::net::SocketAddr = found["localAddress"].as_str().unwrap().parse()?;
        let same = kept.iter().position(|connection| connection.local() == Ok(local));
        assert_eq!(found["backend"], *servers[same.expect("a socket of the client")], "{found}");
    }
    for (query, count) in [
        ("backend=b1", 2),
        ("node=n2", 2),
        ("service=shop&backend=b1&node=n2", 0),
        ("service=other", 0),
        ("state=established", 4),
        ("state=synSent", 0),
        ("limit=3", 3),
    ] {
        assert_eq!(list(query)?.len(), count, "{query}");
    }
    // A request that is out is in flight, one that was answered is not for long.
    kept[0].send("sleep 1500\n")?;
    let in_flight = |expected: usize| {
        eventually("in flight", LIMIT, || {
            let all = list("service=shop").ok()?;
            (all.iter().filter(|found| found["inFlight"] == true).count() == expected).then_some(())
        })
    };
    in_flight(1)?;
    kept[0].line()?;
    in_flight(0)?;
    drop(kept);
    eventually("none is left", LIMIT, || list("service=shop").ok()?.is_empty().then_some(()))?;
    stage.agent.get("/v1/connections?state=nonsense")?.expect_status(400);
    Ok(())
}
