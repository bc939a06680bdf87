//! Turn time: measured in the kernel, from the end of a request to the begin of its answer, for services that ask for it.

use anyhow::Result;
use sluice_tests::system::eventually;

use crate::stage::{FRONTEND, LIMIT, Stage, weighted};

const NAME: &str = "sluice_turn_seconds";
const LABELS: [(&str, &str); 2] = [("service", "shop"), ("backend", "b1")];

fn figure(stage: &Stage, what: &str) -> Result<f64> {
    Ok(stage.agent.metric(&format!("{NAME}{what}"), &LABELS)?.unwrap_or(0.0))
}

#[test]
fn the_time_of_each_answer_is_measured_while_it_is_asked_for() -> Result<()> {
    let stage = Stage::weights("turn", &[1])?;
    let client = stage.client()?;
    let talk = |count: usize| -> Result<()> {
        let connection = client.connect(FRONTEND)?;
        connection.line()?;
        for _ in 0..count {
            connection.exchange("sleep 50")?;
        }
        Ok(())
    };
    // Nobody asked.
    talk(2)?;
    assert_eq!(stage.agent.metric(&format!("{NAME}_count"), &LABELS)?, None);
    stage.put(&weighted(&[1]).set("turnTime", true))?;
    talk(10)?;
    eventually("ten answers are counted", LIMIT, || (figure(&stage, "_count").ok()? >= 10.0).then_some(()))?;
    let mean = figure(&stage, "_sum")? / figure(&stage, "_count")?;
    assert!(mean > 0.045, "a mean of {mean} s, and no answer takes less than 50 ms");
    stage.put(&weighted(&[1]))?;
    talk(2)?;
    assert_eq!(stage.agent.metric(&format!("{NAME}_count"), &LABELS)?, None);
    Ok(())
}
