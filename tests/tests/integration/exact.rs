//! Shares are exact: 5 % is one in twenty, in every window, not on average over luck.

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Load, Service};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, assert_roughly, weighted};

/// Connections of each case, at least: several periods of short tables, and windows that begin anywhere.
const CONNECTIONS: u64 = 400;

/// What a share is of, when there is one service with these weights.
fn shares(weights: &[u32]) -> Vec<(String, f64)> {
    let sum: u32 = weights.iter().sum();
    let share = |weight: &u32| f64::from(*weight) / f64::from(sum);
    weights.iter().zip(1..).map(|(weight, number)| (format!("b{number}"), share(weight))).collect()
}

fn check(stage: &Stage, weights: &[u32]) -> Result<()> {
    stage.put(&weighted(weights))?;
    let client = stage.client()?;
    let report = client.spread(FRONTEND, CONNECTIONS);
    println!("{weights:?}: {:?}", report.by_server());
    let shares = shares(weights);
    let shares: Vec<(&str, f64)> = shares.iter().map(|(name, share)| (name.as_str(), *share)).collect();
    assert_exact(&report, 100, &shares);
    assert_eq!(stage.status("shop")?["shareError"], 0.0, "{weights:?}");
    Ok(())
}

#[test]
fn any_hundred_connections_are_within_one_of_each_share() -> Result<()> {
    let stage = Stage::weights("exact", &[1, 1, 1, 1, 1, 1, 1])?;
    for weights in [
        [80, 20, 0].as_slice(),
        &[95, 5],
        &[1],
        &[1, 1, 1],
        &[7, 11, 13],
        &[333, 333, 334],
        &[997, 1009, 1013],
        &[1, 2, 3, 5, 8, 13, 21],
        &[1000, 1, 1, 1, 1, 1, 1],
        &[50, 30, 10, 5, 3, 1, 1],
    ] {
        check(&stage, weights)?;
    }
    Ok(())
}

#[test]
fn one_in_a_thousand_is_one_in_every_thousand() -> Result<()> {
    let stage = Stage::weights("thousandth", &[999, 1])?;
    let client = stage.client()?;
    let report = client.spread(FRONTEND, 2000);
    assert_exact(&report, 1000, &[("b1", 0.999), ("b2", 0.001)]);
    assert_exact(&report, 100, &[("b1", 0.999), ("b2", 0.001)]);
    assert_eq!(report.answered_by("b2"), 2);
    Ok(())
}

#[test]
fn every_caller_steps_the_same_counter() -> Result<()> {
    let stage = Stage::weights("callers", &[13, 5, 2])?;
    let clients = [stage.client()?, stage.client()?, stage.client()?];
    let loads: Vec<_> =
        clients.iter().map(|client| client.begin(&Load::connects(FRONTEND).count(200).threads(4))).collect();
    let mut servers = Vec::new();
    for load in loads {
        load.reached(200, LIMIT)?;
        let report = load.stop();
        assert_all_answered(&report);
        servers.extend(report.order().map(str::to_owned));
    }
    let count = |name: &str| servers.iter().filter(|server| *server == name).count();
    assert_eq!((count("b1"), count("b2"), count("b3")), (390, 150, 60));
    Ok(())
}

#[test]
fn a_changed_weight_is_exact_from_the_answer_on() -> Result<()> {
    let stage = Stage::weights("change", &[50, 50])?;
    let client = stage.client()?;
    assert_exact(&client.spread(FRONTEND, 150), 100, &[("b1", 0.5), ("b2", 0.5)]);
    let answer = stage.agent.patch("/v1/services/shop/backends/b2", &json!({"weight": 0}))?.expect_status(200).json();
    assert_eq!(answer["weight"], 0);
    assert_eq!(client.spread(FRONTEND, 100).answered_by("b1"), 100);
    stage.agent.patch("/v1/services/shop/backends/b2", &json!({"weight": 150}))?.expect_status(200);
    assert_exact(&client.spread(FRONTEND, 400), 100, &[("b1", 0.25), ("b2", 0.75)]);
    stage
        .agent
        .patch("/v1/services/shop", &json!({"spec": {"backends": weighted(&[9, 1]).json()["spec"]["backends"]}}))?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.9), ("b2", 0.1)]);
    Ok(())
}

#[test]
fn what_no_table_can_hold_is_rounded_and_the_error_is_said() -> Result<()> {
    let stage = Stage::weights("rounded", &[1_000_000, 1])?;
    let client = stage.client()?;
    // The small one keeps one slot of the longest table.
    let report = client.run(&Load::connects(FRONTEND).count(4096).threads(4));
    assert_all_answered(&report);
    assert_eq!((report.answered_by("b1"), report.answered_by("b2")), (4095, 1));
    let status = stage.status("shop")?;
    let error = status["shareError"].as_f64().unwrap();
    assert!((error - (1.0 / 4096.0 - 1.0 / 1_000_001.0)).abs() < 1e-6, "{status}");
    let small = stage.backend("shop", "b2")?;
    assert!(small["desiredShare"].as_f64().unwrap() < 1e-6 && small["programmedShare"] == 1.0 / 4096.0, "{small}");
    Ok(())
}

#[test]
fn with_every_weight_zero_the_caller_is_refused_at_once() -> Result<()> {
    let mut stage = Stage::weights("closed", &[5, 5])?;
    stage.tcp(FRONTEND, "original")?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    for service in [weighted(&[0, 0]), weighted(&[]), weighted(&[0])] {
        stage.put(&service)?;
        let report = client.spread(FRONTEND, 20);
        assert_eq!(report.errors(), [("ECONNREFUSED".to_owned(), 20)].into(), "{}", service.json());
    }
    assert_eq!(stage.metric("sluice_connect_failures_total", &[("service", "shop"), ("reason", "no_backend")])?, 60.0);
    // To the original address when the document says so; and back.
    stage.put(&weighted(&[0, 0]).set("onNoBackend", "pass"))?;
    assert_eq!(client.spread(FRONTEND, 10).answered_by("original"), 10);
    stage.put(&weighted(&[1, 0]).set("onNoBackend", "pass"))?;
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 10);
    Ok(())
}

#[test]
fn an_ipv6_caller_is_refused_too() -> Result<()> {
    let stage = Stage::new("closed-six")?;
    stage.put(&Service::new("shop", "[fd00:96::10]:80").frontend(FRONTEND))?;
    let client = stage.client()?;
    for to in ["[fd00:96::10]:80", "[::ffff:10.96.0.10]:80", FRONTEND] {
        assert_eq!(client.connect(to).unwrap_err(), Errno::ECONNREFUSED, "{to}");
    }
    Ok(())
}

#[test]
fn random_is_roughly_right_and_not_in_turn() -> Result<()> {
    let mut stage = Stage::new("random")?;
    let service = stage.service(&[3, 1, 0])?;
    stage.put(&service.set("balance", "random"))?;
    let client = stage.client()?;
    let report = client.spread(FRONTEND, 1000);
    assert_all_answered(&report);
    assert_roughly("b1", report.answered_by("b1"), 1000, 0.75);
    assert_roughly("b2", report.answered_by("b2"), 1000, 0.25);
    assert_eq!(report.answered_by("b3"), 0);
    // A table in turn would never give four in a row.
    let order: Vec<&str> = report.order().collect();
    assert!(order.windows(8).any(|some| some.iter().all(|server| *server == "b1")));
    Ok(())
}
