//! What tables the agent makes of weights: every share is exact, or its error is said.

use anyhow::Result;
use sluice_tests::Load;

use crate::stage::{FRONTEND, Stage, assert_all_answered, assert_exact, assert_roughly, weighted};

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
