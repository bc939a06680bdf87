//! /v1/operations: what was asked of a node or backend, and how far it has come.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use jiff::SignedDuration;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    parameters::{Ask, At, NoQuery},
    problem::{Problem, ReadProblems},
    stream,
    views::List,
};
use crate::view::operations::{Operation, Wait};

/// Longest wait of one request.
const MAX_WAIT: Duration = Duration::from_secs(3600);

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when this is reached, or when `timeout` is over. Without it, at once.
    #[param(required = false, inline)]
    wait: Option<WaitFor>,
    /// Such as `30s`, which is the default.
    #[param(required = false)]
    timeout: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum WaitFor {
    Zeroed,
    Drained,
}

/// Operations of this agent, oldest first: drains, and the zeros and restores since it started.
#[utoipa::path(get, path = "/v1/operations", operation_id = "list_operations", tag = "operations",
    responses((status = 200, description = "All that are remembered", body = List<Operation>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    stream::one(&app, |app| Ok(List { items: app.handle.operations().list() })).await
}

/// One operation: 200 when it is finished, or what was waited for has come; 202 while it is not.
#[utoipa::path(get, path = "/v1/operations/{operation}", operation_id = "get_operation", tag = "operations",
    params(("operation" = String, Path), WaitQuery),
    responses((status = 200, description = "Finished, or zeroed when that was waited for", body = Operation),
        (status = 202, description = "Still running", body = Operation), ReadProblems))]
pub async fn get(State(app): State<App>, At(id): At<String>, Ask(query): Ask<WaitQuery>) -> Result<Response, Problem> {
    let patience = patience(query.timeout.as_deref())?;
    let wait = match query.wait {
        Some(WaitFor::Zeroed) => Wait::Zeroed,
        Some(WaitFor::Drained) | None => Wait::Finished,
    };
    let patience = if query.wait.is_some() { patience } else { Duration::ZERO };
    let mut stopping = app.stopping.clone();
    let found = tokio::select! {
        found = app.handle.operations().wait(&id, wait, patience) => found,
        // The answer is better late than not at all.
        _ = stopping.wait_for(|stopping| *stopping) => app.handle.operations().get(&id),
    };
    let operation = found.ok_or_else(|| Problem::not_found(format!("there is no operation {id:?}")))?;
    let status = if wait.is_reached(&operation) { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(operation)).into_response())
}

fn patience(text: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(Duration::from_secs(30)) };
    let duration: Option<Duration> = text.parse().ok().and_then(|duration: SignedDuration| duration.try_into().ok());
    let duration = duration.filter(|duration| *duration <= MAX_WAIT);
    duration.ok_or_else(|| {
        Problem::bad_request(format!("timeout is {text:?}: write a duration such as 30s, at most 1h")).at("timeout")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(patience(Some("1m30s")).unwrap(), Duration::from_secs(90));
        for wrong in ["", "soon", "-1s", "2h"] {
            assert_eq!(patience(Some(wrong)).unwrap_err().status, 400, "{wrong:?}");
        }
    }
}
