//! /v1/services: documents with their status.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    App,
    body::Input,
    conditions::{Conditions, etag},
    parameters::{self, Ask, At, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    stream,
    views::{DryRun, List, ServiceView},
};
use crate::{
    engine::client::{Done, Options},
    model::{Change, Name, Origin, Outcome, document::ServiceDocument, parse},
    view::{batches, published::Published},
};

/// All services with their status.
#[utoipa::path(get, path = "/v1/services", tag = "services",
    responses((status = 200, body = List<ServiceView>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    stream::list(move |items| {
        let published = app.handle.published();
        let reporter = app.reporter(&published);
        batches::each_service(reporter.readings, published.state.services(), |service, counters| {
            items.push(&ServiceView::new(&published.state, service, reporter.service_from(service, counters)?))
        })
    })
    .await
}

/// One service with its status. The ETag is the generation of the document.
#[utoipa::path(get, path = "/v1/services/{service}", tag = "services", params(("service" = Name, Path)),
    responses((status = 200, body = ServiceView), ReadProblems))]
pub async fn get(State(app): State<App>, At(name): At<String>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let published = app.handle.published();
    show(&app, &published, &name, StatusCode::OK)
}

/// Makes a service, or replaces its document. A zero outlives it.
#[utoipa::path(put, path = "/v1/services/{service}", tag = "services",
    params(("service" = Name, Path, description = "Must be the document's metadata.name"), WriteQuery),
    request_body(content((ServiceDocument = "application/json"), (ServiceDocument = "application/yaml"))),
    responses((status = 200, description = "Replaced, or with dryRun the plan", body = ServiceView),
        (status = 201, description = "Created", body = ServiceView), WriteProblems))]
pub async fn put(
    State(app): State<App>,
    At(name): At<String>,
    Ask(query): Ask<WriteQuery>,
    conditions: Conditions,
    input: Input,
) -> Result<Response, Problem> {
    let (bytes, format) = input.documents()?;
    let document = parse::service(bytes, format)?;
    if document.metadata.name != name.as_str() {
        let message =
            format!("metadata.name is {}, and the path names {name:?}: they must be equal", document.metadata.name);
        return Err(Problem::invalid("metadata.name", message));
    }
    let name = document.metadata.name.clone();
    let if_match = conditions.expected(generation(&app, &name))?;
    let change = Change::PutService { document: Box::new(document), origin: Origin::Api, if_match };
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(change, options).await?;
    answer(&app, &done, options, &name)
}

/// Changes parts of a service's document by a merge patch (RFC 7396).
#[utoipa::path(patch, path = "/v1/services/{service}", tag = "services", params(("service" = Name, Path), WriteQuery),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json"))),
    responses((status = 200, body = ServiceView), WriteProblems))]
pub async fn patch(
    State(app): State<App>,
    At(name): At<String>,
    Ask(query): Ask<WriteQuery>,
    conditions: Conditions,
    input: Input,
) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let if_match = expected(&app, &name, &conditions)?;
    let change = Change::PatchService { service: name.clone(), patch: input.patch()?, if_match };
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(change, options).await?;
    answer(&app, &done, options, &name)
}

/// Removes a service: its frontends are steered no longer, its connections are untouched.
#[utoipa::path(delete, path = "/v1/services/{service}", tag = "services", params(("service" = Name, Path), WriteQuery),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 204, description = "Deleted"), WriteProblems))]
pub async fn delete(
    State(app): State<App>,
    At(name): At<String>,
    Ask(query): Ask<WriteQuery>,
    conditions: Conditions,
    input: Input,
) -> Result<Response, Problem> {
    let name = parameters::service(&name)?;
    let if_match = expected(&app, &name, &conditions)?;
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(Change::DeleteService { service: name, if_match }, options).await?;
    if options.dry_run {
        return Ok(dry_run(&done, None));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
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

/// The answer to a dry run.
pub fn dry_run(done: &Done, document: Option<serde_json::Value>) -> Response {
    Json(DryRun { dry_run: true, effect: done.outcome.into(), plan: done.plan.clone(), document }).into_response()
}

fn generation(app: &App, name: &Name) -> Option<u64> {
    app.handle.published().state.service(name.as_str()).map(|service| service.generation)
}

fn answer(app: &App, done: &Done, options: Options, name: &Name) -> Result<Response, Problem> {
    if options.dry_run {
        let state = &done.published.state;
        let document = state.service(name.as_str()).map(|service| serde_json::to_value(state.document(service)));
        return Ok(dry_run(done, document.transpose().map_err(anyhow::Error::new)?));
    }
    if done.outcome != Outcome::Created {
        return show(app, &done.published, name, StatusCode::OK);
    }
    let location = [(header::LOCATION, format!("/v1/services/{name}"))];
    Ok((location, show(app, &done.published, name, StatusCode::CREATED)?).into_response())
}

fn show(app: &App, published: &Published, name: &Name, status: StatusCode) -> Result<Response, Problem> {
    let found = published.state.service(name.as_str());
    let service = found.ok_or_else(|| Problem::not_found(format!("there is no service {name}")))?;
    let view = ServiceView::new(&published.state, service, app.reporter(published).service(service)?);
    Ok((status, [etag(service.generation)], Json(view)).into_response())
}
