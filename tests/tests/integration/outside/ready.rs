//! Reports of readiness, and documents that come and go.

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::system::eventually;

use crate::stage::{LIMIT, Stage, path, weighted};

fn report(stage: &Stage, backend: &str, body: &Value) -> Result<Value> {
    Ok(stage.agent.post(&path(&format!("shop/{backend}"), "ready"), body)?.expect_status(200).json())
}

fn state(stage: &Stage, backend: &str) -> Result<String> {
    Ok(stage.backend("shop", backend)?["state"].as_str().unwrap_or_default().to_owned())
}

fn becomes(stage: &Stage, backend: &str, wanted: &str) -> Result<()> {
    eventually("the backend's state", LIMIT, || (state(stage, backend).ok()? == wanted).then_some(()))
}

#[test]
fn a_backend_that_reports_waits_for_its_report() -> Result<()> {
    let stage = Stage::new("report")?;
    stage.put(&weighted(&[1, 1]).set("readiness", json!({"kind": "report"})))?;
    assert_eq!(state(&stage, "b1")?, "unhealthy");
    let view = report(&stage, "b1", &json!({"reason": "warm"}))?;
    assert_eq!((&view["name"], &view["status"]["state"]), (&json!("b1"), &json!("ready")), "{view}");
    assert_eq!(state(&stage, "b2")?, "unhealthy");
    report(&stage, "b1", &json!({"ready": false, "reason": "reindexing"}))?;
    let status = stage.backend("shop", "b1")?;
    assert!(status["state"] == "unhealthy" && status.to_string().contains("reindexing"), "{status}");
    Ok(())
}

#[test]
fn any_backend_takes_reports_and_a_zero_is_untouched() -> Result<()> {
    let stage = Stage::new("report-any")?;
    stage.put(&weighted(&[1, 1, 1]))?;
    stage.zero("shop/b2")?;
    for backend in ["b1", "b2"] {
        report(&stage, backend, &json!({"ready": false}))?;
    }
    assert_eq!((state(&stage, "b1")?.as_str(), state(&stage, "b2")?.as_str()), ("unhealthy", "zero"));
    for backend in ["b1", "b2"] {
        report(&stage, backend, &json!({}))?;
    }
    assert_eq!((state(&stage, "b1")?.as_str(), state(&stage, "b2")?.as_str()), ("ready", "zero"));
    Ok(())
}

#[test]
fn a_lease_that_is_not_renewed_ends() -> Result<()> {
    let stage = Stage::new("lease")?;
    stage.put(&weighted(&[1, 1]))?;
    report(&stage, "b1", &json!({"lease": "500ms"}))?;
    report(&stage, "b2", &json!({"lease": "1h"}))?;
    becomes(&stage, "b1", "unhealthy")?;
    assert_eq!(state(&stage, "b2")?, "ready");
    report(&stage, "b1", &json!({"lease": "1h"}))?;
    assert_eq!(state(&stage, "b1")?, "ready");
    let output = stage.agent.cli(&["ready", "shop/b1", "--not", "--reason", "moving"])?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(state(&stage, "b1")?, "unhealthy");
    Ok(())
}

#[test]
fn reports_that_make_no_sense_are_refused_and_dry_runs_change_nothing() -> Result<()> {
    let stage = Stage::new("report-bad")?;
    stage.put(&weighted(&[1]))?;
    for (field, body) in [
        ("lease", json!({"lease": "1ms"})),
        ("lease", json!({"lease": "30s", "ready": false})),
        ("reason", json!({"reason": "two\nlines"})),
        ("startedAt", json!({"startedAt": "2999-01-01T00:00:00Z"})),
        ("uptime", json!({"startedAt": "2020-01-01T00:00:00Z", "uptime": "5s"})),
        ("uptime", json!({"uptime": "-5s"})),
        ("redy", json!({"redy": true})),
    ] {
        let answer = stage.agent.post(&path("shop/b1", "ready"), &body)?.expect_status(422);
        assert!(answer.text().contains(field), "{body}: {}", answer.text());
    }
    for gone in ["shop/none", "none/b1"] {
        stage.agent.post(&path(gone, "ready"), &json!({}))?.expect_status(404);
    }
    let dry = format!("{}?dryRun=true", path("shop/b1", "ready"));
    stage.agent.post(&dry, &json!({"ready": false}))?.expect_status(200);
    assert_eq!(state(&stage, "b1")?, "ready");
    Ok(())
}

#[test]
fn the_last_ready_backend_is_not_zeroed_without_force() -> Result<()> {
    let stage = Stage::new("report-last")?;
    stage.put(&weighted(&[1, 1]))?;
    report(&stage, "b1", &json!({"ready": false}))?;
    let refused = stage.agent.post(&path("shop/b2", "zero"), &json!({}))?.expect_status(409);
    assert!(refused.text().contains("shop"), "{}", refused.text());
    stage.agent.post(&path("shop/b2", "zero"), &json!({"force": true}))?.expect_status(200);
    Ok(())
}

#[test]
fn without_readiness_nothing_keeps_a_backend_out() -> Result<()> {
    let stage = Stage::probing("ready-gone", |agent| agent)?;
    // Nobody listens there.
    stage.put(&weighted(&[1]).set("readiness", json!({"kind": "tcp", "period": "200ms"})))?;
    assert_eq!(state(&stage, "b1")?, "unhealthy");
    stage.agent.patch("/v1/services/shop", &json!({"spec": {"readiness": null}}))?.expect_status(200);
    assert_eq!(state(&stage, "b1")?, "ready");
    Ok(())
}

#[test]
fn who_is_not_to_probe_takes_backends_for_ready() -> Result<()> {
    let stage = Stage::probing("ready-from", |agent| agent.argument("--node").argument("n1"))?;
    // Nobody listens there, which only the agent of each backend's node finds out.
    stage.put(&weighted(&[1, 1]).set("readiness", json!({"kind": "tcp", "period": "200ms", "from": "node"})))?;
    becomes(&stage, "b2", "ready")?;
    let failures = || stage.metric("sluice_probes_total", &[("kind", "tcp"), ("result", "failure")]);
    eventually("probes of b1", LIMIT, || (failures().ok()? >= 5.0).then_some(()))?;
    assert_eq!((state(&stage, "b1")?.as_str(), state(&stage, "b2")?.as_str()), ("unhealthy", "ready"));
    Ok(())
}
