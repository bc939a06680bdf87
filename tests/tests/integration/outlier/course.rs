//! Out, tried, on trial, back: and who may cut it short.

use anyhow::Result;
use serde_json::json;
use sluice_tests::system::eventually;

use super::{ejection, forever, service, until_out, watched};
use crate::stage::{FRONTEND, LIMIT, assert_all_answered, backend_address};

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
