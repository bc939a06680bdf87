//! Drain, of a node or of one backend: a zero that also empties it.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::{
    App,
    body::Input,
    parameters::{self, Ask, At, WriteQuery},
    problem::{Problem, WriteProblems},
    services,
    zero::expiry,
};
use crate::{
    handle::Options,
    model::{Change, CloseInbound, DrainRequest, IdleClose, Name, OnDeadline, Target, Zero, quiet},
    observe::operations::Operation,
};

/// Longest time that a drain may take.
const MAX_DEADLINE: SignedDuration = SignedDuration::from_hours(24 * 7);

/// How to drain. All of it may be left out; what is left out when a drain is repeated stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DrainBody {
    /// The drain ends after this time at the latest. 60s when it is not said.
    #[schema(example = "60s")]
    deadline: Option<String>,
    /// Connections that were idle for this long are closed, so that their owners connect elsewhere: 100ms to 1h, and
    /// longer when the service says so. `null`: none is. 2s when it is not said.
    #[serde(deserialize_with = "said")]
    #[schema(value_type = Option<String>, example = "2s")]
    idle_close: Option<Option<String>>,
    /// What becomes of the steered connections that are left then.
    on_deadline: Option<OnDeadline>,
    /// What becomes of idle connections that backends on this host have accepted from callers that nobody steers. To
    /// close them at this end can lose a request that is on its way.
    close_inbound: Option<CloseInbound>,
    /// Why; kept and shown.
    reason: String,
    /// Who; kept and shown.
    owner: String,
    /// After this time the target is restored by itself, drained or not.
    #[schema(example = "2h")]
    expires: Option<String>,
    /// Do it even if a service is left without enough capacity.
    force: bool,
}

/// Gives no new connection to the node and empties it: waits for what is in flight, and closes what is idle.
#[utoipa::path(post, path = "/v1/nodes/{node}/drain", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    request_body(content((DrainBody = "application/json"))),
    responses((status = 202, description = "No new connection comes; follow the operation", body = Operation,
        headers(("Location", description = "/v1/operations/{id}"))), WriteProblems))]
pub async fn drain_node(
    State(app): State<App>,
    At(node): At<String>,
    Ask(query): Ask<WriteQuery>,
    input: Input,
) -> Result<Response, Problem> {
    drain(&app, Target::Node(parameters::node(&node)?), query, &input).await
}

/// Gives no new connection to the backend and empties it: waits for what is in flight, and closes what is idle.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/drain", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((DrainBody = "application/json"))),
    responses((status = 202, description = "No new connection comes; follow the operation", body = Operation,
        headers(("Location", description = "/v1/operations/{id}"))), WriteProblems))]
pub async fn drain_backend(
    State(app): State<App>,
    At((service, backend)): At<(String, String)>,
    Ask(query): Ask<WriteQuery>,
    input: Input,
) -> Result<Response, Problem> {
    drain(&app, parameters::backend(&service, &backend)?, query, &input).await
}

async fn drain(app: &App, target: Target, query: WriteQuery, input: &Input) -> Result<Response, Problem> {
    let body: DrainBody = input.options()?;
    let now = Timestamp::now();
    let request = DrainRequest {
        operation: app.handle.operations().new_id(),
        deadline: body.deadline.as_deref().map(deadline).transpose()?,
        idle_close: body.idle_close.map(idle_close).transpose()?,
        on_deadline: body.on_deadline,
        close_inbound: body.close_inbound,
    };
    let expires = body.expires.as_deref().map(|text| expiry(now, text)).transpose()?;
    let zero = Zero { owner: body.owner, reason: body.reason, since: now, expires, drain: None };
    let change = Change::Zero { target: target.clone(), zero, drain: Some(request), force: body.force };
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(change, options).await?;
    if options.dry_run {
        return Ok(services::dry_run(&done, None));
    }
    let drain = done.published.state.zero(&target).and_then(|zero| zero.drain.clone());
    let drain = drain.ok_or_else(|| Problem::not_found(format!("{target} was restored in this moment")))?;
    let shown = app.handle.operations().get(&drain.operation);
    let operation = shown.unwrap_or_else(|| Operation::drain(&drain.operation, &target, drain.since, drain.deadline));
    let location = format!("/v1/operations/{}", operation.id);
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(operation)).into_response())
}

fn deadline(text: &str) -> Result<Duration, Problem> {
    let duration: Option<SignedDuration> = text.parse().ok();
    let duration = duration.filter(|duration| *duration <= MAX_DEADLINE).and_then(|d| Duration::try_from(d).ok());
    duration.ok_or_else(|| {
        Problem::invalid(
            "deadline",
            format!("deadline is {text:?}: write a time from now such as 60s, at most 7 days (168h)"),
        )
    })
}

fn idle_close(text: Option<String>) -> Result<IdleClose, Problem> {
    let Some(text) = text else { return Ok(IdleClose::Never) };
    let quiet = quiet::parse(&text);
    quiet
        .map(IdleClose::After)
        .map_err(|why| Problem::invalid("idleClose", format!("idleClose is {why}, or null for never")))
}

/// Tells `null` from nothing.
fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::<String>::deserialize(deserializer).map(Some)
}
