//! Shares are exact: 5 % is one in twenty, in every window, not on average over luck.

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Errno, Load, Service};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, weighted};

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
