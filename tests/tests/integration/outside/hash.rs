//! Affinity: a client stays with its backend while the weights of others move, and a zero ends it at once.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Client, Options, Service};

use crate::{
    hash::stage,
    stage::{FRONTEND, Stage, assert_roughly, weighted},
};

/// Clients of a test: source addresses of one process.
const CLIENTS: u32 = 300;

fn source(number: u32) -> String {
    format!("10.9.{}.{}", number / 250, number % 250 + 1)
}

/// The backend of one source address.
fn dial(client: &Client, number: u32) -> Result<String> {
    let options = Options::default().from(&format!("{}:0", source(number))).reset_on_close();
    Ok(client.connect_with(FRONTEND, &options)?.line()?)
}

/// The backend of every source address.
fn dial_all(client: &Client) -> Result<Vec<String>> {
    (0..CLIENTS).map(|number| dial(client, number)).collect()
}

fn count(backends: &[String], name: &str) -> u64 {
    backends.iter().filter(|backend| *backend == name).count() as u64
}

fn moved(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

#[test]
fn one_client_stays_and_many_are_spread_by_weight() -> Result<()> {
    let stage = stage("stay", &[60, 30, 10])?;
    let client = stage.client()?;
    let first = dial_all(&client)?;
    assert_eq!(moved(&first, &dial_all(&client)?), 0);
    // Which client hashes where is luck once; another process of the same cgroup and address is the same client.
    assert_eq!(moved(&first, &dial_all(&stage.client()?)?), 0);
    for (name, share) in [("b1", 0.6), ("b2", 0.3), ("b3", 0.1)] {
        assert_roughly(name, count(&first, name), CLIENTS.into(), share);
    }
    let unbound = client.spread(FRONTEND, 50).by_server();
    assert_eq!(unbound.len(), 1, "{unbound:?}");
    Ok(())
}

#[test]
fn a_changed_weight_moves_little_more_than_its_share_of_clients() -> Result<()> {
    let stage = stage("weights", &[100, 100, 100, 100])?;
    let client = stage.client()?;
    let before = dial_all(&client)?;
    // From 25 % to 12.5/87.5 = 14.3 %: 10.7 % of the clients have to leave b1.
    stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 50}))?.expect_status(200);
    let after = dial_all(&client)?;
    let must = f64::from(CLIENTS) * (0.25 - 1.0 / 7.0);
    assert!(moved(&before, &after) as f64 <= must * 2.0 + 10.0, "{} moved, {must} had to", moved(&before, &after));
    // Nobody has a reason to come to b1, and those of others stay but for a few.
    let strangers = before.iter().zip(&after).filter(|(before, after)| *before != "b1" && before != after).count();
    assert!(strangers <= CLIENTS as usize / 20, "{strangers} of other backends moved");
    assert_roughly("b1", count(&after, "b1"), CLIENTS.into(), 1.0 / 7.0);
    // And back: everybody is where it was.
    stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 100}))?.expect_status(200);
    assert_eq!(moved(&before, &dial_all(&client)?), 0);
    Ok(())
}

#[test]
fn a_backend_that_comes_or_goes_moves_its_own_clients_only() -> Result<()> {
    let mut stage = stage("members", &[100, 100, 100])?;
    stage.tcp("10.0.0.4:8080", "b4")?;
    let client = stage.client()?;
    let before = dial_all(&client)?;
    stage.put(&weighted(&[100, 100, 100, 100]).set("balance", "hash"))?;
    let more = dial_all(&client)?;
    let elsewhere = before.iter().zip(&more).filter(|(before, after)| before != after && *after != "b4").count();
    assert!(elsewhere <= CLIENTS as usize / 20, "{elsewhere} moved, and not to the new one");
    assert_roughly("b4", count(&more, "b4"), CLIENTS.into(), 0.25);
    stage.put(&weighted(&[100, 100, 100]).set("balance", "hash"))?;
    assert_eq!(moved(&before, &dial_all(&client)?), 0);
    Ok(())
}

#[test]
fn a_zero_ends_affinity_and_moves_nobody_else() -> Result<()> {
    let stage = stage("zero", &[100, 100, 100, 100])?;
    let client = stage.client()?;
    let before = dial_all(&client)?;
    for target in ["node/n2", "shop/b2"] {
        stage.zero(target)?;
        let during = dial_all(&client)?;
        assert_eq!(count(&during, "b2"), 0, "{target}");
        let strangers = before.iter().zip(&during).filter(|(before, after)| *before != "b2" && before != after).count();
        assert!(strangers <= CLIENTS as usize / 20, "{strangers} of other backends moved");
        // Those that had to leave are spread, not sent to one neighbour.
        let refugees: Vec<String> =
            before.iter().zip(&during).filter(|(before, _)| *before == "b2").map(|(_, after)| after.clone()).collect();
        for name in ["b1", "b3", "b4"] {
            assert_roughly(name, count(&refugees, name), refugees.len() as u64, 1.0 / 3.0);
        }
        stage.restore(target)?;
        assert_eq!(moved(&before, &dial_all(&client)?), 0, "after the restore of {target}");
    }
    Ok(())
}

#[test]
fn datagrams_have_affinity_too() -> Result<()> {
    let mut stage = Stage::new("udp")?;
    stage.world.namespace.ip("route add local 10.9.0.0/16 dev lo")?;
    let mut service = Service::new("dns", "10.96.0.10:53/udp").set("balance", "hash");
    for number in 1..=3 {
        let (name, address) = (format!("b{number}"), format!("10.0.0.{number}:8053"));
        stage.udp(&address, &name)?;
        service = service.backend(&name, &address, 1);
    }
    stage.put(&service)?;
    let client = stage.client()?;
    let mut counts = BTreeMap::new();
    for number in 0..60 {
        let from = format!("{}:0", source(number));
        let servers: Vec<String> = (0..3)
            .map(|_| Ok(client.datagrams(&from)?.exchange_with("x", "10.96.0.10:53")?.0))
            .collect::<Result<_>>()?;
        assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
        let options = Options::default().from(&from);
        assert_eq!(client.datagrams_with(&options, Some("10.96.0.10:53"))?.exchange("x")?.0, servers[0]);
        *counts.entry(servers[0].clone()).or_insert(0) += 1;
    }
    for (server, count) in counts {
        assert_roughly(&server, count, 60, 1.0 / 3.0);
    }
    Ok(())
}

#[test]
fn affinity_survives_the_agent() -> Result<()> {
    let mut stage = stage("restart", &[100, 100, 100])?;
    let client = stage.client()?;
    let before = dial_all(&client)?;
    stage.agent.kill()?;
    assert_eq!(moved(&before, &dial_all(&client)?), 0, "without an agent");
    stage.agent.start()?;
    assert_eq!(moved(&before, &dial_all(&client)?), 0, "with the next agent");
    Ok(())
}
