//! Callers that open connections in fixed patterns get the same shares as everybody else.

use std::collections::BTreeMap;

use anyhow::Result;
use sluice_tests::{Client, Service};

use crate::stage::{FRONTEND, Stage, backend_address};

/// Who answers a connection.
fn server(client: &Client, frontend: &str) -> Result<String> {
    Ok(client.connect(frontend)?.line()?)
}

/// A resolver that sorts addresses connects a datagram socket to each of them, with the service's own port, looks which
/// source the kernel chose, and closes it (RFC 6724). Then the connection follows.
#[test]
fn resolvers_that_sort_addresses_take_no_turn_of_a_connection() -> Result<()> {
    const ROUNDS: u64 = 200;
    let (v4, v6) = ("10.96.21.1:443", "[fd00:96:21::1]:443");
    let mut stage = Stage::new("resolver")?;
    let mut service = Service::new("shop", v4).frontend("10.96.21.1:443/udp").frontend(v6);
    for (number, weight) in [(1, 95), (2, 5)] {
        let (name, address) = (format!("b{number}"), backend_address(number));
        stage.tcp(&address, &name)?;
        service = service.backend(&name, &address, weight);
    }
    stage.put(&service)?;
    let client = stage.client()?;
    let mut servers: BTreeMap<(&str, String), u64> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for to in [v4, v6] {
            // There is no such frontend over IPv6, and perhaps no route.
            let _ = client.datagrams_to(to).and_then(|socket| socket.local());
        }
        for to in [v6, v4] {
            *servers.entry((to, server(&client, to)?)).or_insert(0) += 1;
        }
    }
    for to in [v4, v6] {
        let canary = servers.get(&(to, "b2".to_owned())).copied().unwrap_or(0);
        assert!(canary.abs_diff(ROUNDS / 20) <= 1, "{to}: {canary} of {ROUNDS}, for 5 %");
    }
    // None of the datagram sockets was a connection, and none has failed.
    for backend in ["b1", "b2"] {
        stage.count_is("shop", backend, "activeConnections", 0)?;
        stage.count_is("shop", backend, "connecting", 0)?;
    }
    let closed = stage.metric("sluice_connection_duration_seconds_count", &[("service", "shop")])?;
    // On a busy machine some of them stay open for long enough to be taken for used.
    assert!((2 * ROUNDS..2 * ROUNDS + ROUNDS / 2).contains(&(closed as u64)), "{closed} for {}", 2 * ROUNDS);
    assert_eq!(stage.metric("sluice_connect_failures_total", &[("service", "shop")])?, 0.0);
    Ok(())
}

/// A query and its cancel, a request and its upload, a pool that opens four at a time.
#[test]
fn connections_in_patterns_meet_every_backend_in_every_place() -> Result<()> {
    // Who meets whom is drawn: so many that chance makes none of this fail.
    const ROUNDS: usize = 150;
    for weights in [[1, 1].as_slice(), &[51, 49], &[1, 1, 1, 1]] {
        let mut stage = Stage::new("pattern")?;
        let service = stage.service(weights)?.set("balance", "scatter");
        stage.put(&service)?;
        let client = stage.client()?;
        let backends = weights.len();
        for pattern in [2, 4] {
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                rounds.push((0..pattern).map(|_| server(&client, FRONTEND)).collect::<Result<Vec<_>>>()?);
            }
            for place in 0..pattern {
                for backend in (1..=backends).map(|number| format!("b{number}")) {
                    let count = rounds.iter().filter(|round| round[place] == backend).count();
                    assert!(
                        count.abs_diff(ROUNDS / backends) <= ROUNDS / backends * 2 / 3,
                        "{weights:?}: {backend} has place {place} of {pattern} {count} times of {ROUNDS}"
                    );
                }
            }
            let together = rounds.iter().filter(|round| round[0] == round[1]).count();
            assert!(together >= ROUNDS / backends / 10, "{weights:?}: {together} pairs of {ROUNDS} stay together");
        }
    }
    Ok(())
}
