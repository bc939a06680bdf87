//! How every handler writes: it makes a change and shows the result, or with `dryRun` the plan.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    App,
    body::Input,
    parameters::{Ask, WriteQuery},
    problem::Problem,
    views::DryRun,
};
use crate::{
    engine::{
        client::{Done, Options},
        guards::Guards,
    },
    model::{Change, Name, Outcome, State},
};

/// The query and the body of a write.
#[derive(Debug)]
pub struct Write {
    pub input: Input,
    options: Options,
}

impl FromRequest<App> for Write {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let (mut parts, body) = request.into_parts();
        let Ask(WriteQuery { dry_run, force }) = Ask::from_request_parts(&mut parts, app).await?;
        let input = Input::from_request(Request::from_parts(parts, body), app).await?;
        let guards = Guards { capacity: !force };
        Ok(Self { options: Options { dry_run, received: input.received, guards }, input })
    }
}

impl Write {
    /// Whether the query insists on it.
    pub fn is_forced(&self) -> bool {
        !self.options.guards.capacity
    }

    /// Makes the change and answers. A dry run is answered with the plan, and with the document that there would be.
    ///
    /// # Errors
    /// When the change is refused or fails.
    pub async fn make(
        &self,
        app: &App,
        change: Change,
        document: impl FnOnce(&State) -> Option<serde_json::Result<Value>>,
        answer: impl FnOnce(&Done) -> Result<Response, Problem>,
    ) -> Result<Response, Problem> {
        let done = app.handle.change(change, self.options).await?;
        if !self.options.dry_run {
            return answer(&done);
        }
        let document = document(&done.published.state).transpose().map_err(anyhow::Error::new)?;
        Ok(Json(DryRun { dry_run: true, effect: done.outcome.into(), plan: done.plan, document }).into_response())
    }
}

/// Shows what was written: 201 with its path when it is new.
///
/// # Errors
/// Those of `show`.
pub fn shown(
    done: &Done,
    path: &str,
    show: impl FnOnce(StatusCode) -> Result<Response, Problem>,
) -> Result<Response, Problem> {
    if done.outcome != Outcome::Created {
        return show(StatusCode::OK);
    }
    Ok(([(header::LOCATION, path)], show(StatusCode::CREATED)?).into_response())
}

/// A document is put where its name says.
///
/// # Errors
/// 422.
pub fn must_name(document: &Name, path: &str) -> Result<(), Problem> {
    if document.as_str() == path {
        return Ok(());
    }
    let message = format!("metadata.name is {document}, and the path names {path:?}: they must be equal");
    Err(Problem::invalid("metadata.name", message))
}
