//! The user-space model and the kernel agree on the choice: what the agent says is compared with what happens to those
//! who dial.

use anyhow::Result;
use serde_json::Value;
use sluice_tests::Options;

use crate::stage::{FRONTEND, Stage};

pub fn explain(stage: &Stage, to: &str, from: &str) -> Result<Value> {
    Ok(stage.agent.get(&format!("/v1/explain?to={to}&from={from}"))?.expect_status(200).json())
}

#[test]
fn the_backend_that_explain_names_is_the_one_that_answers() -> Result<()> {
    let mut stage = Stage::new("hash")?;
    stage.world.namespace.ip("route add local 10.9.0.0/16 dev lo")?;
    let service = stage.service(&[50, 30, 15, 5])?;
    stage.put(&service.set("balance", "hash"))?;
    let client = stage.client()?;
    let compare = |stage: &Stage, what: &str| -> Result<()> {
        for number in 1..=60 {
            let source = format!("10.9.0.{number}");
            let from = format!("{source},pid:{}", client.id());
            let explained = explain(stage, FRONTEND, &from)?;
            let options = Options::default().from(&format!("{source}:0")).reset_on_close();
            let answer = client.connect_with(FRONTEND, &options)?.line()?;
            if explained["backend"] != *answer {
                // The table may have been built anew in between, a moment after a node's zero.
                let now = explain(stage, FRONTEND, &from)?;
                assert_eq!(now["backend"], *answer, "{what}: {explained}, then {now}");
            }
        }
        Ok(())
    };
    compare(&stage, "at first")?;
    stage.zero("node/n1")?;
    compare(&stage, "with a zero")?;
    stage.restore("node/n1")?;
    stage.agent.patch("/v1/services/shop/backends/b3", &serde_json::json!({"weight": 80}))?.expect_status(200);
    compare(&stage, "with another weight")?;
    // One that binds no address is told by its process alone.
    let explained = explain(&stage, FRONTEND, &format!("pid:{}", client.id()))?;
    assert_eq!(explained["backend"], *client.connect(FRONTEND)?.line()?);
    Ok(())
}
