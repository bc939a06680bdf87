//! What the agent shows of what was counted.

use std::collections::BTreeSet;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;
use sluice_tests::Service;

use crate::{
    stage::{FRONTEND, Stage, assert_all_answered},
    tracking::failures_are,
};

#[test]
fn without_a_backend_it_is_counted_for_the_service() -> Result<()> {
    let stage = Stage::new("no-backend")?;
    stage.put(&Service::new("shop", FRONTEND).backend("b1", "10.0.0.1:80", 0))?;
    let client = stage.client()?;
    assert_eq!(client.spread(FRONTEND, 7).errors(), [("ECONNREFUSED".to_owned(), 7)].into());
    failures_are(&stage, &[("no_backend", 7)])?;
    assert_eq!(stage.status("shop")?["noBackend"], 7);
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 0);
    Ok(())
}

#[test]
fn the_time_of_the_last_connection_is_kept() -> Result<()> {
    let stage = Stage::weights("last", &[1])?;
    let client = stage.client()?;
    assert_eq!(stage.backend("shop", "b1")?["lastNewConnectionAt"], Value::Null);
    let before = Timestamp::now();
    assert_all_answered(&client.spread(FRONTEND, 1));
    let after = Timestamp::now();
    let last: Timestamp = stage.backend("shop", "b1")?["lastNewConnectionAt"].as_str().unwrap().parse()?;
    assert!(before <= last && last <= after, "{before} {last} {after}");
    Ok(())
}

#[test]
fn shares_that_were_observed_are_shown_beside_those_desired() -> Result<()> {
    let stage = Stage::weights("observed", &[90, 10])?;
    let client = stage.client()?;
    assert_eq!(stage.backend("shop", "b1")?["observedShare"], Value::Null, "nothing was observed yet");
    assert_all_answered(&client.spread(FRONTEND, 200));
    let small = stage.backend("shop", "b2")?;
    for share in ["desiredShare", "programmedShare", "observedShare"] {
        assert_eq!(small[share], 0.1, "{share}: {small}");
    }
    let [low, high] = [0, 1].map(|end| small["confidence95"][end].as_f64().unwrap());
    assert!(0.05 < low && low < 0.1 && 0.1 < high && high < 0.16, "{small}");
    let labels = [("service", "shop"), ("backend", "b2"), ("kind", "observed")];
    assert_eq!(stage.metric("sluice_traffic_share_ratio", &labels)?, 0.1);
    Ok(())
}

#[test]
fn metrics_and_health_are_served() -> Result<()> {
    let stage = Stage::weights("metrics", &[3, 1])?;
    assert_all_answered(&stage.client()?.spread(FRONTEND, 8));
    stage.agent.get("/healthz")?.expect_status(200);
    stage.agent.get("/readyz")?.expect_status(200);
    let answer = stage.agent.get("/metrics")?.expect_status(200);
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{:?}", answer.headers);
    let page = answer.text();
    let names: BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for name in [
        "sluice_connections_total",
        "sluice_connections",
        "sluice_connect_failures_total",
        "sluice_connect_duration_seconds",
        "sluice_connection_duration_seconds",
        "sluice_resets_total",
        "sluice_retransmits_total",
        "sluice_rtt_seconds",
        "sluice_backend_weight",
        "sluice_backend_effective_weight",
        "sluice_traffic_share_ratio",
        "sluice_zero_duration_seconds",
        "sluice_verdicts_total",
        "sluice_map_entries",
        "sluice_map_max_entries",
        "sluice_config_generation",
        "sluice_config_apply_duration_seconds",
        "sluice_config_errors_total",
        "sluice_build_info",
    ] {
        assert!(names.contains(name), "{name} is not among {names:?}");
    }
    // Verdicts: eight connects were steered, all of them by connect4.
    let steered = [("program", "connect4"), ("verdict", "steered")];
    assert_eq!(stage.metric("sluice_verdicts_total", &steered)?, 8.0);
    assert_eq!(stage.metric("sluice_backend_weight", &[("service", "shop"), ("backend", "b1")])?, 3.0);
    stage.zero("shop/b1")?;
    assert_eq!(stage.metric("sluice_backend_weight", &[("service", "shop"), ("backend", "b1")])?, 3.0);
    assert_eq!(stage.metric("sluice_backend_effective_weight", &[("service", "shop"), ("backend", "b1")])?, 0.0);
    assert_eq!(stage.metric("sluice_zero_duration_seconds_count", &[])?, 1.0);
    // No client's address is in a label.
    assert!(!page.contains("127.0.0.1:") && !page.contains("10.96.0.10"), "{page}");
    Ok(())
}
