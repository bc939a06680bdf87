//! /v1/history: which changes somebody asked for, and a way to take one back.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    parameters::{Ask, At},
    problem::{Problem, ReadProblems, WriteProblems},
    stream,
    views::List,
    write::{self, Write},
};
use crate::view::history::{HistoryEntry, UndoView};

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Of one object alone: `service/shop` with its backends, `node/node-1` or `shop/n1`.
    #[param(required = false)]
    object: Option<String>,
    /// At most so many, the newest.
    #[param(required = false)]
    limit: Option<usize>,
}

/// How to undo: there is nothing to say yet.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UndoRequest {}

/// Changes that somebody asked for, the newest first: the last 1,024, over restarts of the agent.
#[utoipa::path(get, path = "/v1/history", operation_id = "list_history", tag = "operations", params(HistoryQuery),
    responses((status = 200, description = "The newest first", body = List<HistoryEntry>), ReadProblems))]
pub async fn list(State(app): State<App>, Ask(query): Ask<HistoryQuery>) -> Result<Response, Problem> {
    stream::list(&app.clone(), move |items| {
        let published = app.handle.published();
        let mut entries = published.history.of(query.object.as_deref()).take(query.limit.unwrap_or(usize::MAX));
        entries.try_for_each(|entry| items.push(&entry))
    })
    .await
}

/// Puts back what a change replaced, all of it or nothing: documents, and zeros without their drains. The last 64 changes
/// over the API can be undone, and an undo, too. 409 when something of it has been changed since.
#[utoipa::path(post, path = "/v1/history/{change}/undo", operation_id = "undo", tag = "operations",
    params(("change" = u64, Path), super::parameters::WriteQuery),
    request_body(content((UndoRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = UndoView), WriteProblems))]
pub async fn undo(State(app): State<App>, At(change): At<u64>, write: Write) -> Result<Response, Problem> {
    let UndoRequest {} = write.input.options()?;
    let (done, items) = app.handle.undo(change, write.options().clone()).await?;
    let view = UndoView {
        dry_run: write.options().dry_run,
        change,
        items,
        programmed_in_microseconds: u64::try_from(done.programmed_in.as_micros()).unwrap_or(u64::MAX),
        plan: done.plan.clone(),
    };
    Ok(write::warned(Json(view).into_response(), write::unsaved(&done).into_iter()))
}
