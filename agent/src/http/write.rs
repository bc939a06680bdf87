//! How every handler writes: it makes a change and shows the result, or with `dryRun` the plan.

use std::sync::Arc;

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    App,
    access::RequestAuthor,
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
    model::{Change, Name, Origin, Outcome, State},
};

/// Headers of one answer.
const MOST_WARNINGS: usize = 16;
/// What becomes of a service that is another than its file says.
pub const CHANGED: &str = "stays as it is now";

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
        let by = parts.extensions.get().map(|RequestAuthor(who)| who.clone());
        let input = Input::from_request(Request::from_parts(parts, body), app).await?;
        let guards = Guards { capacity: !force, shrink: false };
        Ok(Self { options: Options { dry_run, received: input.received, guards, by }, input })
    }
}

impl Write {
    /// Whether the query insists on it.
    pub fn is_forced(&self) -> bool {
        !self.options.guards.capacity
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Who asks for it.
    pub fn by(&self) -> Option<&Arc<str>> {
        self.options.by.as_ref()
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
        let overrules = overruling(&change).map(|(name, becomes)| (name.clone(), becomes));
        let done = app.handle.change(change, self.options.clone()).await?;
        if !self.options.dry_run {
            let overruled = overrules.and_then(|(name, becomes)| overruled(&done.before, &name, becomes));
            return answer(&done).map(|response| warned(response, unsaved(&done).into_iter().chain(overruled)));
        }
        let document = document(&done.published.state).transpose().map_err(anyhow::Error::new)?;
        Ok(Json(DryRun { dry_run: true, effect: done.outcome.into(), plan: done.plan, document }).into_response())
    }
}

/// That the store does not hold a change yet, in words.
pub fn unsaved(done: &Done) -> Option<String> {
    let why = done.unsaved.as_ref()?;
    Some(format!(
        "it holds in the kernel and is not saved yet, so that a reboot forgets it; it is saved when it can be: {why}"
    ))
}

/// What becomes of a change when its service is a file's, in words.
pub fn overruled(before: &State, service: &Name, becomes: &str) -> Option<String> {
    let Origin::File(file) = &before.service(service.as_str())?.origin else { return None };
    let file = file.display();
    Some(format!("service/{service} is from {file}: it {becomes} until its document there changes. Change that, too"))
}

/// The service that a change makes another than its file says, and what becomes of it.
fn overruling(change: &Change) -> Option<(&Name, &'static str)> {
    match change {
        Change::DeleteService { service, .. } => Some((service, "stays deleted")),
        Change::PutService { document, .. } => Some((&document.metadata.name, CHANGED)),
        Change::PatchService { service, .. }
        | Change::PatchBackend { service, .. }
        | Change::PatchGroup { service, .. } => Some((service, CHANGED)),
        Change::PutNode { .. }
        | Change::DeleteNode { .. }
        | Change::UndeclareNode { .. }
        | Change::Zero { .. }
        | Change::Restore { .. }
        | Change::EndDrains { .. }
        | Change::UpdateHealth { .. } => None,
    }
}

/// The answer with what else is to be known, in `Warning` headers.
pub fn warned(mut response: Response, warnings: impl Iterator<Item = String>) -> Response {
    // What a quoted string of a header may hold.
    let plain = |c: char| match c {
        '"' | '\\' => '\'',
        ' '..='~' => c,
        _ => '?',
    };
    for warning in warnings.take(MOST_WARNINGS) {
        let text: String = warning.chars().map(plain).collect();
        if let Ok(value) = format!("299 sluice \"{text}\"").parse() {
            response.headers_mut().append(header::WARNING, value);
        }
    }
    response
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
