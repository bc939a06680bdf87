//! /v1/services: documents with their status.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    App,
    conditions::{Conditions, etag},
    parameters::{self, Ask, At, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    stream,
    views::{DryRun, List, ServiceView},
    write::{self, Write, must_name},
};
use crate::{
    engine::client::Done,
    model::{Change, Name, Origin, Service, State as Desired, document::ServiceDocument, parse},
    view::{batches, published::Published},
};

/// All services with their status.
#[utoipa::path(get, path = "/v1/services", operation_id = "list_services", tag = "services",
    responses((status = 200, description = "All, in the order of names", body = List<ServiceView>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    stream::list(&app.clone(), move |items| {
        let published = app.handle.published();
        let reporter = app.reporter(&published);
        batches::each_service(reporter.readings, published.state.services(), |service, counters| {
            items.push(&ServiceView::new(&published.state, service, reporter.service_from(service, counters)?))
        })
    })
    .await
}

/// One service with its status. The ETag is the generation of the document.
#[utoipa::path(get, path = "/v1/services/{service}", operation_id = "get_service", tag = "services", params(("service" = Name, Path)),
    responses((status = 200, description = "The service", body = ServiceView), ReadProblems))]
pub async fn get(State(app): State<App>, At(name): At<String>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let published = app.handle.published();
    let service = find(&published, &name)?.clone();
    let tag = etag(service.generation);
    let shown = stream::one(&app, move |app| view(app, &published, &service)).await?;
    Ok(([tag], shown).into_response())
}

/// Makes a service, or replaces its document. A zero outlives it.
#[utoipa::path(put, path = "/v1/services/{service}", operation_id = "put_service", tag = "services",
    params(("service" = Name, Path, description = "Must be the document's metadata.name"), WriteQuery),
    request_body(content((ServiceDocument = "application/json"), (ServiceDocument = "application/yaml"))),
    responses((status = 200, description = "Replaced, or with dryRun the plan", body = ServiceView),
        (status = 201, description = "Created", body = ServiceView), WriteProblems))]
pub async fn put(
    State(app): State<App>,
    At(path): At<String>,
    conditions: Conditions,
    write: Write,
) -> Result<Response, Problem> {
    let (bytes, format) = write.input.documents()?;
    let document = Box::new(parse::service(bytes, format)?);
    let name = document.metadata.name.clone();
    must_name(&name, &path)?;
    let if_match = conditions.expected(generation(&app, &name))?;
    make(&app, &write, &name, Change::PutService { document, origin: Origin::Api, if_match }).await
}

/// Changes parts of a service's document by a merge patch (RFC 7396).
#[utoipa::path(patch, path = "/v1/services/{service}", operation_id = "patch_service", tag = "services", params(("service" = Name, Path), WriteQuery),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json"))),
    responses((status = 200, description = "Patched, or with dryRun the plan", body = ServiceView), WriteProblems))]
pub async fn patch(
    State(app): State<App>,
    At(name): At<String>,
    conditions: Conditions,
    write: Write,
) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let if_match = expected(&app, &name, &conditions)?;
    let change = Change::PatchService { service: name.clone(), patch: write.input.patch()?, if_match };
    make(&app, &write, &name, change).await
}

/// Removes a service: its frontends are steered no longer, its connections are untouched.
#[utoipa::path(delete, path = "/v1/services/{service}", operation_id = "delete_service", tag = "services", params(("service" = Name, Path), WriteQuery),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 204, description = "Deleted"), WriteProblems))]
pub async fn delete(
    State(app): State<App>,
    At(name): At<String>,
    conditions: Conditions,
    write: Write,
) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let if_match = expected(&app, &name, &conditions)?;
    let change = Change::DeleteService { service: name, if_match };
    write.make(&app, change, |_| None, |_| Ok(StatusCode::NO_CONTENT.into_response())).await
}

/// The generation that a change of an existing service must find. That it exists is for the change itself to say.
///
/// # Errors
/// 412.
pub fn expected(app: &App, name: &Name, conditions: &Conditions) -> Result<Option<u64>, Problem> {
    match generation(app, name) {
        None => Ok(None),
        current => conditions.expected(current),
    }
}

fn generation(app: &App, name: &Name) -> Option<u64> {
    app.handle.published().state.service(name.as_str()).map(|service| service.generation)
}

/// Changes this service and shows it.
async fn make(app: &App, write: &Write, name: &Name, change: Change) -> Result<Response, Problem> {
    let planned = |state: &Desired| {
        state.service(name.as_str()).map(|service| serde_json::to_value(state.document(service).redacted()))
    };
    let answer = |done: &Done| {
        write::shown(done, &format!("/v1/services/{name}"), |status| show(app, &done.published, name, status))
    };
    write.make(app, change, planned, answer).await
}

fn show(app: &App, published: &Published, name: &Name, status: StatusCode) -> Result<Response, Problem> {
    let service = find(published, name)?;
    Ok((status, [etag(service.generation)], Json(view(app, published, service)?)).into_response())
}

fn find<'a>(published: &'a Published, name: &Name) -> Result<&'a Arc<Service>, Problem> {
    let found = published.state.service(name.as_str());
    found.ok_or_else(|| Problem::not_found(format!("there is no service {name}")))
}

fn view(app: &App, published: &Published, service: &Service) -> anyhow::Result<ServiceView> {
    Ok(ServiceView::new(&published.state, service, app.reporter(published).service(service)?))
}
