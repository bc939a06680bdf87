//! Drain, of a node or of one backend: a zero that also empties it.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App,
    parameters::WriteQuery,
    problem::{Problem, WriteProblems},
    times,
    views::DryRun,
    write::Write,
    zero::expiry,
};
use crate::{
    engine::client::Done,
    model::{Change, CloseInbound, DrainRequest, IdleClose, Name, OnDeadline, Target, Zero},
    view::operations::Operation,
};

/// How to drain. All of it may be left out; what is left out when a drain is repeated stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainBody {
    /// The drain ends after this time at the latest: 7 days at most.
    #[serde(deserialize_with = "times::deadline")]
    #[schema(value_type = Option<String>, default = "60s", example = "60s")]
    deadline: Option<Duration>,
    /// Connections that were idle for this long are closed, so that their owners connect elsewhere: a time from 100ms
    /// to 1h, or the service's own when that is longer. `usual` is the service's own, and 2s where it has none. `never`,
    /// or `null`: none is closed.
    #[serde(deserialize_with = "times::idle_close")]
    #[schema(value_type = Option<String>, default = "usual", example = "2s")]
    idle_close: Option<IdleClose>,
    /// What becomes of the steered connections that are left then.
    #[serde(deserialize_with = "times::on_deadline")]
    #[schema(default = "keep")]
    on_deadline: Option<OnDeadline>,
    /// What becomes of idle connections that backends on this host have accepted from callers that nobody steers. To
    /// close them at this end can lose a request that is on its way. Idle is what `idleClose` says: with `never` there
    /// is nothing to close.
    #[serde(deserialize_with = "times::close_inbound")]
    #[schema(default = "never")]
    close_inbound: Option<CloseInbound>,
    /// Why; kept and shown.
    reason: String,
    /// Who; kept and shown.
    owner: String,
    /// After this time the target is restored by itself, drained or not.
    #[serde(deserialize_with = "times::expires")]
    #[schema(value_type = Option<String>, example = "2h")]
    expires: Option<SignedDuration>,
    /// Do it even if a service is left without enough capacity.
    force: bool,
}

/// Gives no new connection to the node and empties it: waits for what is in flight, and closes what is idle.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    request_body(content((DrainBody = "application/json"))),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 202, description = "No new connection comes; follow the operation", body = Operation,
        headers(("Location", description = "/v1/operations/{id}"))), WriteProblems))]
pub async fn drain_node(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    drain(&app, &target, &write).await
}

/// Gives no new connection to the backend and empties it: waits for what is in flight, and closes what is idle.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/drain", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((DrainBody = "application/json"))),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 202, description = "No new connection comes; follow the operation", body = Operation,
        headers(("Location", description = "/v1/operations/{id}"))), WriteProblems))]
pub async fn drain_backend(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    drain(&app, &target, &write).await
}

async fn drain(app: &App, target: &Target, write: &Write) -> Result<Response, Problem> {
    let body: DrainBody = write.input.options()?;
    let now = Timestamp::now();
    let request = DrainRequest {
        operation: app.handle.operations().new_id(),
        deadline: body.deadline,
        idle_close: body.idle_close,
        on_deadline: body.on_deadline,
        close_inbound: body.close_inbound,
    };
    let expires = body.expires.map(|time| expiry(now, time)).transpose()?;
    let zero = Zero { owner: body.owner, reason: body.reason, since: now, expires, drain: None };
    let force = body.force || write.is_forced();
    let change = Change::Zero { target: target.clone(), zero, drain: Some(request), force };
    let answer = |done: &Done| {
        let drain = done.published.state.zero(target).and_then(|zero| zero.drain.clone());
        let drain = drain.ok_or_else(|| Problem::not_found(format!("{target} was restored in this moment")))?;
        let shown = app.handle.operations().get(&drain.operation);
        let operation =
            shown.unwrap_or_else(|| Operation::drain(&drain.operation, target, drain.since, drain.deadline));
        let location = format!("/v1/operations/{}", operation.id);
        Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response())
    };
    write.make(app, change, |_| None, answer).await
}
