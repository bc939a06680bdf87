//! Two who want the same node to leave, each in another way.

use std::{thread, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Errno, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, path};

fn zero_of(stage: &Stage) -> Result<Value> {
    Ok(stage.agent.get("/v1/nodes/n1")?.expect_status(200).json()["status"].clone())
}

#[test]
fn nobody_hardens_the_drain_of_another_without_force() -> Result<()> {
    let stage = Stage::weights("owners", &[1, 1])?;
    let client = stage.client()?;
    let both = [client.connect(FRONTEND)?, client.connect(FRONTEND)?];
    let names = [both[0].line()?, both[1].line()?];
    let busy = &both[usize::from(names[1] == "b1")];
    assert_eq!(busy.exchange("x")?, "b1: x");
    busy.send("half of ")?;
    let drain = |body: &Value| stage.agent.post(&path("node/n1", "drain"), body);
    let begun = json!({"owner": "ann", "deadline": "10m", "idleClose": "1h", "expires": "9h"});
    let operation = drain(&begun)?.expect_status(202).json();
    let expires = zero_of(&stage)?["expiresAt"].clone();
    assert!(expires.is_string());
    for (field, value) in [
        ("deadline", json!("1s")),
        ("onDeadline", json!("close")),
        ("idleClose", json!("100ms")),
        ("closeInbound", json!("idle")),
    ] {
        for owner in ["bob", ""] {
            let request = json!({"owner": owner, field: value});
            let refused = drain(&request)?.expect_status(409).json();
            assert_eq!(refused["field"], field, "{refused}");
            assert!(refused["detail"].as_str().unwrap().contains("that of ann"), "{refused}");
        }
    }
    // Gentler is fine, and is the same drain; what is left out stays, and so does whose it is.
    let gentler = drain(&json!({"owner": "bob", "deadline": "20m", "idleClose": null}))?.expect_status(202).json();
    assert_eq!(gentler["id"], operation["id"]);
    assert_ne!(gentler["deadline"], operation["deadline"]);
    let status = zero_of(&stage)?;
    assert_eq!((&status["owner"], &status["expiresAt"]), (&json!("ann"), &expires), "{status}");
    drain(&json!({"owner": "bob", "onDeadline": "close"}))?.expect_status(409);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(busy.exchange("a line")?, "b1: half of a line");
    // By force it is bob's, who closes what is left.
    drain(&json!({"owner": "bob", "deadline": "100ms", "onDeadline": "close", "force": true}))?.expect_status(202);
    assert_eq!(eventually("it is closed", LIMIT, || busy.error())?, Errno::ECONNABORTED);
    Ok(())
}
