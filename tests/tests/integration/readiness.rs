//! Backends take connections while they are ready, as probes and reports say, and the agent says why they do not.

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Service, system::eventually};

use crate::stage::{LIMIT, Stage, backend_address, weighted};

/// Service "shop" with backends b1, b2 ... of weight 1, watched like this; no servers.
pub fn watched(backends: usize, readiness: Value) -> Service {
    weighted(&vec![1; backends]).set("readiness", readiness)
}

/// Waits until the kernel's table has this backend, or has it no more.
pub fn serves(stage: &Stage, backend: &str, serves: bool) -> Result<()> {
    eventually("the backend's share", LIMIT, || {
        let share = stage.backend("shop", backend).ok()?["programmedShare"].as_f64()?;
        ((share > 0.0) == serves).then_some(())
    })
}

#[test]
fn probes_leave_the_servers_application_alone() -> Result<()> {
    let mut stage = Stage::probing("ready-quiet", |agent| agent)?;
    stage.tcp(&backend_address(1), "b1")?;
    stage.put(&watched(1, json!({"kind": "tcp", "period": "100ms"})))?;
    serves(&stage, "b1", true)?;
    let probes = || stage.metric("sluice_probes_total", &[("kind", "tcp"), ("result", "success")]);
    eventually("twenty probes", LIMIT, || (probes().ok()? >= 20.0).then_some(()))?;
    assert_eq!(stage.servers["b1"].accepted(), 0, "connections of probes end before they are accepted");
    // Nor do they count as the service's.
    assert_eq!(stage.count("shop", "b1", "newConnections")?, 0);
    Ok(())
}
