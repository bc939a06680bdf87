//! Zero and restore, of a node or of one backend.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, backends,
    parameters::WriteQuery,
    problem::{Problem, WriteProblems},
    times,
    views::{RestoreAnswer, RestoreView, ZeroAnswer, ZeroView},
    write::Write,
};
use crate::{
    engine::client::Done,
    model::{BackendId, Change, Name, Target, Zero},
    view::{operations::OperationKind, proof::ZeroStatus, published::Published, status::AdminState},
};

/// How to zero. All of it may be left out; what is left out when a zero is repeated stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ZeroRequest {
    /// Why; kept and shown.
    reason: String,
    /// Who; kept and shown.
    owner: String,
    /// After this time it is restored by itself. Without it the zero holds until it is restored. Another
    /// owner's zero is made longer by this, and shorter only by force.
    #[serde(deserialize_with = "times::expires")]
    #[schema(value_type = Option<String>, example = "15m")]
    expires: Option<SignedDuration>,
    /// Do it even if a service is left without enough capacity.
    force: bool,
}

/// How to restore: there is nothing to say yet.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RestoreRequest {}

/// Gives no new connection to any backend on this node. Existing ones are untouched.
#[utoipa::path(post, path = "/v1/nodes/{node}/zero", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    request_body(content((ZeroRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = ZeroAnswer),
        WriteProblems))]
pub async fn zero_node(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    zero(&app, &target, &write).await
}

/// Gives no new connection to this backend. Existing ones are untouched.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/zero", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((ZeroRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = ZeroAnswer),
        WriteProblems))]
pub async fn zero_backend(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    zero(&app, &target, &write).await
}

/// Ends the zero of a node: its backends take connections by their weights again, those that are probed once a probe
/// that begins after the restore has found them ready.
#[utoipa::path(post, path = "/v1/nodes/{node}/restore", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    request_body(content((RestoreRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = RestoreAnswer),
        WriteProblems))]
pub async fn restore_node(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    restore(&app, &target, &write).await
}

/// Ends the zero of a backend: it takes connections by its weight again, one that is probed once a probe that begins after
/// the restore has found it ready.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/restore", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((RestoreRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = RestoreAnswer),
        WriteProblems))]
pub async fn restore_backend(app: State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    restore(&app, &target, &write).await
}

async fn zero(app: &App, target: &Target, write: &Write) -> Result<Response, Problem> {
    let request: ZeroRequest = write.input.options()?;
    let now = Timestamp::now();
    let expires = request.expires.map(|time| expiry(now, time)).transpose()?;
    let zero = Zero { owner: request.owner, reason: request.reason, since: now, expires, drain: None };
    let force = request.force || write.is_forced();
    let change = Change::Zero { target: target.clone(), zero, drain: None, force };
    let answer = |done: &Done| {
        let Standing { state, active, last, zero, unhealthy: _ } = standing(app, &done.published, target)?;
        let view = ZeroView {
            target: target.to_string(),
            state,
            active_connections: active,
            flows: kept_flows(app, &done.published, target),
            last_new_connection_at: last,
            zero,
            operation: finished(app, OperationKind::Zero, target, (now, write), active),
        };
        Ok(Json(view).into_response())
    };
    write.make(app, change, |_| None, answer).await
}

async fn restore(app: &App, target: &Target, write: &Write) -> Result<Response, Problem> {
    let RestoreRequest {} = write.input.options()?;
    let now = Timestamp::now();
    let answer = |done: &Done| {
        // A node that lived by its zero alone is gone now, and ready wherever it comes again.
        let (state, active, unhealthy) = match standing(app, &done.published, target) {
            Ok(standing) => (standing.state, standing.active, standing.unhealthy),
            Err(problem) if problem.status == 404 => (AdminState::Ready, 0, 0),
            Err(problem) => return Err(problem),
        };
        let view = RestoreView {
            target: target.to_string(),
            state,
            unhealthy,
            restored_at: done.acknowledged_at,
            programmed_in_microseconds: u64::try_from(done.programmed_in.as_micros()).unwrap_or(u64::MAX),
            operation: finished(app, OperationKind::Restore, target, (now, write), active),
        };
        Ok(Json(view).into_response())
    };
    write.make(app, Change::Restore { target: target.clone() }, |_| None, answer).await
}

/// A target as it stands after a change.
struct Standing {
    state: AdminState,
    /// Its backends that are not healthy.
    unhealthy: usize,
    active: u64,
    last: Option<Timestamp>,
    zero: Option<ZeroStatus>,
}

fn standing(app: &App, published: &Published, target: &Target) -> Result<Standing, Problem> {
    let reporter = app.reporter(published);
    match target {
        Target::Node(name) => {
            let node = published.state.node(name.as_str());
            let node = node.ok_or_else(|| Problem::not_found(format!("there is no node {name}")))?;
            let status = reporter.node(node)?;
            let (active, last) = (status.active_connections, status.last_new_connection_at);
            Ok(Standing { state: status.state, unhealthy: status.unhealthy, active, last, zero: status.zero })
        }
        Target::Backend { .. } => {
            let (service, backend) = backends::find(&published.state, target)?;
            let status = reporter.backend(service, backend)?;
            let status = status.ok_or_else(|| Problem::not_found(format!("there is no backend {target}")))?;
            let (active, last) = (status.active_connections, status.last_new_connection_at);
            let unhealthy = usize::from(!backend.is_healthy());
            Ok(Standing { state: status.state, unhealthy, active, last, zero: status.zero })
        }
    }
}

/// Flows of datagrams that go on to a target that was zeroed; `None` where all move, and where the kernel does not show
/// them: the zero holds all the same.
fn kept_flows(app: &App, published: &Published, target: &Target) -> Option<u64> {
    let state = &published.state;
    let keeps = |id: &BackendId| state.backend(*id).is_some_and(|(service, _)| service.keeps_flows());
    let backends: Vec<_> = state.backends_of(target).into_iter().filter(keeps).collect();
    if backends.is_empty() {
        return None;
    }
    let flows = app.handle.readings().flows().ok()?;
    Some(backends.iter().filter_map(|id| flows.get(id)).sum())
}

/// The id of the operation that this write was, which began a moment before `now`.
fn finished(app: &App, kind: OperationKind, target: &Target, (now, write): (Timestamp, &Write), active: u64) -> String {
    let ago = SignedDuration::try_from(write.input.received.elapsed()).unwrap_or_default();
    app.handle.operations().finished(kind, target, write.by(), now.checked_sub(ago).unwrap_or(now), active)
}

/// # Errors
/// 422 when it lies beyond all calendars.
pub fn expiry(now: Timestamp, time: SignedDuration) -> Result<Timestamp, Problem> {
    now.checked_add(time)
        .map_err(|_| Problem::invalid("expires", "expires: too far away: leave it out, and it never does"))
}
