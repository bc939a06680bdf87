//! A node leaves: what is in flight is waited for, what is idle is closed, and the end is told when it is true.

mod course;
pub mod end_of_stream;
mod kinds;
mod places;
mod sessions;

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Client, Connection, Errno, Options, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, path};

/// Short, and yet many ticks of every kernel's clock.
pub const QUIET: &str = "300ms";

/// A connection to this backend, which has exchanged something.
pub fn connection_to<'a>(client: &'a Client, backend: &str) -> Result<Connection<'a>> {
    connection_with(client, backend, &Options::default())
}

/// The same, made so.
pub fn connection_with<'a>(client: &'a Client, backend: &str, options: &Options) -> Result<Connection<'a>> {
    for _ in 0..20 {
        let connection = client.connect_with(FRONTEND, options)?;
        if connection.line()? == backend {
            assert_eq!(connection.exchange("hello")?, format!("{backend}: hello"));
            return Ok(connection);
        }
    }
    anyhow::bail!("no connection went to {backend}")
}

pub fn drain(stage: &Stage, target: &str, body: &Value) -> Result<String> {
    let answer = stage.agent.post(&path(target, "drain"), body)?.expect_status(202);
    let operation = answer.json();
    assert_eq!((&operation["kind"], &operation["target"]), (&json!("drain"), &json!(target)), "{operation}");
    let id = operation["id"].as_str().expect("an id").to_owned();
    assert_eq!(answer.header("location"), Some(format!("/v1/operations/{id}").as_str()));
    Ok(id)
}

pub fn operation(stage: &Stage, id: &str) -> Result<Value> {
    Ok(stage.agent.get(&format!("/v1/operations/{id}"))?.json())
}

/// Waits until the operation is as `wanted` says.
pub fn reaches(stage: &Stage, id: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut last = Value::Null;
    let reached = eventually("the operation moves on", LIMIT, || {
        last = operation(stage, id).ok()?;
        wanted(&last).then(|| last.clone())
    });
    reached.map_err(|error| error.context(format!("{last}")))
}

pub fn ends(stage: &Stage, id: &str) -> Result<Value> {
    let answer = stage.agent.get(&format!("/v1/operations/{id}?wait=drained&timeout=50s"))?.expect_status(200);
    Ok(answer.json())
}

/// Whether this kernel has `bpf_sock_destroy`.
fn closes_under_the_lock(stage: &Stage) -> Result<bool> {
    let output = stage.agent.cli(&["check", "-o", "json"])?;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let features = found["items"].as_array().expect("a list");
    Ok(features.iter().any(|one| one["feature"] == "bpf_sock_destroy" && one["status"] == "ok"))
}

/// The kernel has ended the connection; its owner is told.
pub fn is_closed(connection: &Connection<'_>) -> Result<()> {
    let error = eventually("the connection is closed", LIMIT, || connection.error());
    assert_eq!(error?, Errno::ECONNABORTED);
    Ok(())
}
