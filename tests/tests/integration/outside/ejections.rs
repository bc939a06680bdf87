//! Ejections over their whole life, and their limits.

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Load, system::eventually};

use crate::{
    outlier::{ejection, forever, refused, service, until_out, watched},
    stage::{FRONTEND, LIMIT, assert_all_answered, backend_address},
};

#[test]
fn no_more_are_out_than_may_be() -> Result<()> {
    let mut stage =
        watched("most", 4, json!({"baseEjectionTime": "1h", "maxEjectionTime": "1h", "maxEjectionPercent": 50}))?;
    let client = stage.client()?;
    stage.servers.clear();
    assert_eq!(refused(&client.run(&Load::connects(FRONTEND).count(50))), 50);
    let out = || {
        let status = stage.status("shop").ok()?;
        assert_eq!(status["panic"], false, "{status}");
        let backends = status["backends"].as_array()?;
        Some(backends.iter().filter(|backend| backend["state"] == "unhealthy").count())
    };
    eventually("half of them are out", LIMIT, || (out()? == 2).then_some(()))?;
    // The others go on being tried, and stay.
    assert_eq!(refused(&client.run(&Load::connects(FRONTEND).count(50))), 50);
    assert_eq!(out(), Some(2));
    Ok(())
}

#[test]
fn without_rules_nobody_is_ejected() -> Result<()> {
    let mut stage = watched("no-rules", 2, forever())?;
    stage.put(&service(2, serde_json::Value::Null))?;
    let client = stage.client()?;
    stage.servers.remove("b2");
    assert_eq!(refused(&client.run(&Load::connects(FRONTEND).count(40))), 20);
    assert_eq!(stage.backend("shop", "b2")?["state"], "ready");
    Ok(())
}

#[test]
fn a_backend_that_heals_comes_back_by_a_trial_and_a_ramp() -> Result<()> {
    let rules = json!({"baseEjectionTime": "1s", "maxEjectionTime": "2s", "trial": "2s"});
    let mut stage = watched("heals", 2, rules.clone())?;
    let client = stage.client()?;
    stage.servers.remove("b2");
    until_out(&stage, &client, "b2")?;
    // Its time passes; the agent's own connection finds it as it was, and it stays out.
    std::thread::sleep(std::time::Duration::from_millis(2500));
    let status = stage.becomes("b2", "unhealthy")?;
    assert!(ejection(&status).1 == "out", "{status}");
    stage.put(&service(2, rules).set("warmup", json!({"duration": "4s"})))?;
    stage.tcp(&backend_address(2), "b2")?;
    let status = stage.becomes("b2", "warming")?;
    assert_eq!(ejection(&status).1, "trial", "{status}");
    let share = eventually("a table with it", LIMIT, || {
        stage.backend("shop", "b2").ok()?["programmedShare"].as_f64().filter(|share| *share > 0.0)
    })?;
    assert!(share < 0.05, "{share}");
    stage.becomes("b2", "ready")?;
    let report = client.spread(FRONTEND, 20);
    assert_all_answered(&report);
    assert_eq!(report.answered_by("b2"), 10);
    Ok(())
}

#[test]
fn an_ejection_outlives_its_agent_and_a_restore_ends_it() -> Result<()> {
    let mut stage = watched("outlives", 2, forever())?;
    let client = stage.client()?;
    stage.servers.remove("b2");
    until_out(&stage, &client, "b2")?;
    stage.agent.kill()?;
    assert_all_answered(&client.spread(FRONTEND, 20));
    stage.agent.start()?;
    let status = stage.becomes("b2", "unhealthy")?;
    assert_eq!(ejection(&status), ("consecutiveFailures".into(), "out".into()));
    // The operator's zero and its end leave the ejection alone.
    stage.zero("shop/b2")?;
    assert_eq!(stage.backend("shop", "b2")?["state"], "zero");
    stage.restore("shop/b2")?;
    assert_eq!(stage.backend("shop", "b2")?["state"], "unhealthy");
    // Once more, and it is the ejection that ends.
    stage.tcp(&backend_address(2), "b2")?;
    stage.restore("shop/b2")?;
    stage.becomes("b2", "ready")?;
    let report = client.spread(FRONTEND, 20);
    assert_all_answered(&report);
    assert_eq!(report.answered_by("b2"), 10);
    Ok(())
}
