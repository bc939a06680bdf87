//! Zero: not one new connection, existing ones untouched, the weight kept for later.

use std::time::Instant;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::stage::{FRONTEND, Stage, assert_all_answered};

#[test]
fn the_answer_carries_the_proof() -> Result<()> {
    let stage = Stage::weights("proof", &[1, 1])?;
    let client = stage.client()?;
    let before = Timestamp::now();
    assert_all_answered(&client.spread(FRONTEND, 10));
    let started = Instant::now();
    let request = json!({"reason": "disk is failing", "owner": "ops"});
    let answer = stage.agent.post("/v1/nodes/n1/zero", &request)?.expect_status(200).json();
    let took = u64::try_from(started.elapsed().as_micros())?;
    let after = Timestamp::now();
    println!("{answer}");
    assert_eq!((&answer["owner"], &answer["reason"]), (&json!("ops"), &json!("disk is failing")));
    let programmed = answer["programmedInMicroseconds"].as_u64().unwrap();
    assert!(programmed > 0 && programmed <= took, "{programmed} of {took}");
    assert_eq!((&answer["newConnectionsSinceZero"], &answer["activeConnections"]), (&json!(0), &json!(0)));
    let [zeroed, last] = ["zeroedAt", "lastNewConnectionAt"].map(|field| time(&answer[field]));
    assert!(before <= last && last <= zeroed && zeroed <= after, "{before} {last} {zeroed} {after}");
    // Asked again, it is the same zero.
    assert_all_answered(&client.spread(FRONTEND, 50));
    let again = stage.zero("node/n1")?;
    assert_eq!(again["zeroedAt"], answer["zeroedAt"]);
    assert_eq!((&again["newConnectionsSinceZero"], &again["reason"]), (&json!(0), &answer["reason"]));
    // The kernel's clock is brought to wall-clock time anew for each answer.
    let apart = time(&again["lastNewConnectionAt"]).duration_since(last).abs();
    assert!(apart.as_millis() < 10, "{again} and {answer}");
    Ok(())
}

/// A time of RFC 3339.
pub fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}
