//! /v1/accept-shrink: what files would remove and the brake holds is let happen.

use axum::{Extension, Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    App,
    access::RequestAuthor,
    body::Input,
    parameters::{Ask, NoQuery},
    problem::{Problem, WriteProblems},
};
use crate::view::events::EventKind;

/// What is to be said: nothing yet.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShrinkRequest {}

/// The files whose documents wait no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ShrinkAnswer {
    pub files: Vec<String>,
}

/// Lets happen what watched files ask for and the brake holds, because it removes more than a share of the services or
/// backends. 409 when nothing is held.
#[utoipa::path(post, path = "/v1/accept-shrink", tag = "agent",
    request_body(content((ShrinkRequest = "application/json"))),
    responses((status = 200, description = "It is in force", body = ShrinkAnswer), WriteProblems))]
pub async fn accept_shrink(
    State(app): State<App>,
    _: Ask<NoQuery>,
    author: Option<Extension<RequestAuthor>>,
    input: Input,
) -> Result<Json<ShrinkAnswer>, Problem> {
    let ShrinkRequest {} = input.options()?;
    let files = app.handle.accept_shrink().await?;
    if files.is_empty() {
        return Err(Problem::new(StatusCode::CONFLICT, "no file asks for anything that is held"));
    }
    let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
    let by = author.map(|Extension(RequestAuthor(who))| who);
    tracing::info!(by = by.as_deref(), "what was held of {} is accepted", files.join(", "));
    app.handle.events().record_by(by, EventKind::ShrinkAccepted, None, files.join(", "));
    Ok(Json(ShrinkAnswer { files }))
}
