//! What zeroes are refused, end by themselves or are only tried out.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::json;
use sluice_tests::system::eventually;

use crate::{
    stage::{FRONTEND, LIMIT, Stage, assert_exact, path, weighted},
    zero::{time, two_services},
};

#[test]
fn a_zero_that_leaves_too_little_is_refused_unless_forced() -> Result<()> {
    let stage = Stage::weights("guard", &[70, 30])?;
    let client = stage.client()?;
    let refused = |target: &str| -> Result<()> {
        let problem = stage.agent.post(&path(target, "zero"), &json!({}))?.expect_status(409);
        assert_eq!(problem.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem.json()["services"], json!(["shop"]), "{}", problem.text());
        Ok(())
    };
    stage.put(&weighted(&[70, 30]).set("minReadyPercent", 50))?;
    refused("node/n1")?;
    refused("shop/b1")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.7), ("b2", 0.3)]);
    // Enough is left without the small one.
    stage.zero("shop/b2")?;
    assert_eq!(client.spread(FRONTEND, 50).answered_by("b1"), 50);
    // The last one is guarded whatever the percentage.
    stage.put(&weighted(&[70, 30]))?;
    refused("node/n1")?;
    assert_eq!(client.spread(FRONTEND, 50).answered_by("b1"), 50);
    stage.agent.post("/v1/nodes/n1/zero", &json!({"force": true}))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 50).errors(), [("ECONNREFUSED".to_owned(), 50)].into());
    stage.restore("node/n1")?;
    stage.restore("shop/b2")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.7), ("b2", 0.3)]);
    Ok(())
}

#[test]
fn a_node_that_would_empty_several_services_names_them_all() -> Result<()> {
    let stage = two_services("names")?;
    stage.zero("a/two")?;
    stage.zero("b/two")?;
    let problem = stage.agent.post("/v1/nodes/n1/zero", &json!({}))?.expect_status(409).json();
    assert_eq!(problem["services"], json!(["a", "b"]));
    for name in ["a", "b"] {
        assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
    }
    Ok(())
}

#[test]
fn a_zero_expires() -> Result<()> {
    let stage = Stage::weights("expires", &[1, 1])?;
    let client = stage.client()?;
    let answer = stage.agent.post("/v1/nodes/n1/zero", &json!({"expires": "3s"}))?.expect_status(200).json();
    let lasts = time(&answer["expiresAt"]).duration_since(time(&answer["zeroedAt"]));
    assert!((2500..=3500).contains(&lasts.as_millis()), "{answer}");
    let report = client.spread(FRONTEND, 20);
    // On a machine so slow that it is over already, this says nothing.
    assert!(report.answered_by("b1") == 0 || Timestamp::now() > time(&answer["expiresAt"]), "{:?}", report.by_server());
    eventually("the zero ends", LIMIT, || {
        (stage.agent.get("/v1/nodes/n1").ok()?.json()["status"]["state"] == "ready").then_some(())
    })?;
    assert!(Timestamp::now() >= time(&answer["expiresAt"]), "not before its time");
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    for wrong in ["soon", "-5m", "0s", ""] {
        let problem = stage.agent.post("/v1/nodes/n1/zero", &json!({"expires": wrong}))?.expect_status(422).json();
        assert_eq!(problem["field"], "expires", "{wrong:?}");
    }
    Ok(())
}

#[test]
fn dry_run_says_what_it_would_do_and_does_nothing() -> Result<()> {
    let stage = Stage::weights("dry", &[1, 1])?;
    let client = stage.client()?;
    let answer = stage.agent.post("/v1/nodes/n1/zero?dryRun=true", &json!({}))?.expect_status(200).json();
    assert!(!answer["plan"].as_array().unwrap().is_empty(), "{answer}");
    stage.agent.delete("/v1/services/shop?dryRun=true")?.expect_status(200);
    let path = "/v1/services/shop?dryRun=true";
    stage.agent.put(path, &weighted(&[1, 0]).json())?.expect_status(200);
    stage.agent.patch(path, &json!({"spec": {"frontends": ["10.96.0.99:80"]}}))?.expect_status(200);
    stage.agent.patch("/v1/services/shop/backends/b1?dryRun=true", &json!({"weight": 9}))?.expect_status(200);
    // It finds the same faults as the write itself.
    stage.agent.put(path, &weighted(&[2_000_000, 0]).json())?.expect_status(422);
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    assert_eq!(stage.agent.get("/v1/services/shop")?.json()["status"]["generation"], 1);
    Ok(())
}
