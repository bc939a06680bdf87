//! /v1/services/{service}/backends/{backend}: one backend of a service.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    App,
    conditions::{Conditions, etag},
    parameters::{Ask, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    services, stream,
    views::BackendView,
    write::Write,
};
use crate::{
    model::{Backend, Change, Name, Service, State as Desired, Target},
    view::published::Published,
};

/// One backend with its status. The ETag is the generation of the service.
#[utoipa::path(get, path = "/v1/services/{service}/backends/{backend}", operation_id = "get_backend", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path)),
    responses((status = 200, description = "The backend", body = BackendView), ReadProblems))]
pub async fn get(State(app): State<App>, target: Target, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let published = app.handle.published();
    let tag = etag(find(&published.state, &target)?.0.generation);
    let shown = stream::one(&app, move |app| Ok(view(app, &published, &target)?)).await?;
    Ok(([tag], shown).into_response())
}

/// Changes parts of one backend by a merge patch (RFC 7396): `{"weight": 5}` changes its weight.
#[utoipa::path(patch, path = "/v1/services/{service}/backends/{backend}", operation_id = "patch_backend", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json"))),
    responses((status = 200, description = "Patched, or with dryRun the plan", body = BackendView), WriteProblems))]
pub async fn patch(
    State(app): State<App>,
    target: Target,
    conditions: Conditions,
    write: Write,
) -> Result<Response, Problem> {
    let Target::Backend { service, backend } = target.clone() else { return Err(missing(&target)) };
    let if_match = services::expected(&app, &service, &conditions)?;
    let change = Change::PatchBackend { service, backend, patch: write.input.patch()?, if_match };
    let planned = |state: &Desired| {
        let (service, backend) = find(state, &target).ok()?;
        Some(serde_json::to_value(state.backend_document(service, backend).redacted()))
    };
    write.make(&app, change, planned, |done| show(&app, &done.published, &target)).await
}

/// The backend of a target.
///
/// # Errors
/// 404.
pub fn find<'a>(state: &'a Desired, target: &Target) -> Result<(&'a Service, &'a Backend), Problem> {
    let Target::Backend { service, backend } = target else { return Err(missing(target)) };
    let found = state.service(service.as_str());
    let service = found.ok_or_else(|| Problem::not_found(format!("there is no service {service}")))?;
    let found = service.backends.iter().find(|held| held.name == *backend);
    let backend =
        found.ok_or_else(|| Problem::not_found(format!("service {} has no backend {backend}", service.name)))?;
    Ok((service, backend))
}

/// Answers with a backend.
///
/// # Errors
/// 404.
pub fn show(app: &App, published: &Published, target: &Target) -> Result<Response, Problem> {
    let (service, _) = find(&published.state, target)?;
    Ok(([etag(service.generation)], Json(view(app, published, target)?)).into_response())
}

fn view(app: &App, published: &Published, target: &Target) -> Result<BackendView, Problem> {
    let (service, backend) = find(&published.state, target)?;
    let status = app.reporter(published).backend(service, backend)?.ok_or_else(|| missing(target))?;
    Ok(BackendView::new(published.state.backend_document(service, backend), status))
}

fn missing(target: &Target) -> Problem {
    Problem::not_found(format!("there is no backend {target}"))
}
