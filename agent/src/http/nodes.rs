//! /v1/nodes: hosts that backends run on.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    App,
    body::Input,
    conditions::etag,
    parameters::{self, Ask, At, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    services, stream,
    views::{DryRun, List, NodeView},
};
use crate::{
    engine::client::Options,
    model::{Change, Name, Outcome, document::NodeDocument, parse},
    view::published::Published,
};

/// All nodes with their status.
#[utoipa::path(get, path = "/v1/nodes", tag = "nodes", responses((status = 200, body = List<NodeView>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    stream::list(move |items| {
        let published = app.handle.published();
        let reporter = app.reporter(&published);
        for node in published.state.nodes() {
            items.push(&NodeView::new(node, reporter.node(node)?))?;
        }
        Ok(())
    })
    .await
}

/// One node with its status.
#[utoipa::path(get, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = Name, Path)),
    responses((status = 200, body = NodeView), ReadProblems))]
pub async fn get(State(app): State<App>, At(name): At<String>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let name = parameters::node(&name)?;
    show(&app, &app.handle.published(), &name, StatusCode::OK)
}

/// Declares a node, or replaces its document.
#[utoipa::path(put, path = "/v1/nodes/{node}", tag = "nodes",
    params(("node" = Name, Path, description = "Must be the document's metadata.name"), WriteQuery),
    request_body(content((NodeDocument = "application/json"), (NodeDocument = "application/yaml"))),
    responses((status = 200, description = "Replaced, or with dryRun the plan", body = NodeView),
        (status = 201, description = "Created", body = NodeView), WriteProblems))]
pub async fn put(
    State(app): State<App>,
    At(name): At<String>,
    Ask(query): Ask<WriteQuery>,
    input: Input,
) -> Result<Response, Problem> {
    let (bytes, format) = input.documents()?;
    let document = parse::node(bytes, format)?;
    if document.metadata.name != name.as_str() {
        let message =
            format!("metadata.name is {}, and the path names {name:?}: they must be equal", document.metadata.name);
        return Err(Problem::invalid("metadata.name", message));
    }
    let name = document.metadata.name.clone();
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(Change::PutNode { document: Box::new(document) }, options).await?;
    if options.dry_run {
        let document = done.published.state.node(name.as_str()).map(|node| serde_json::to_value(node.document()));
        return Ok(services::dry_run(&done, document.transpose().map_err(anyhow::Error::new)?));
    }
    if done.outcome != Outcome::Created {
        return show(&app, &done.published, &name, StatusCode::OK);
    }
    let location = [(header::LOCATION, format!("/v1/nodes/{name}"))];
    Ok((location, show(&app, &done.published, &name, StatusCode::CREATED)?).into_response())
}

/// Forgets a node that no backend names.
#[utoipa::path(delete, path = "/v1/nodes/{node}", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 204, description = "Deleted"), WriteProblems))]
pub async fn delete(
    State(app): State<App>,
    At(name): At<String>,
    Ask(query): Ask<WriteQuery>,
    input: Input,
) -> Result<Response, Problem> {
    let node = parameters::node(&name)?;
    let options = Options { dry_run: query.dry_run, received: input.received };
    let done = app.handle.change(Change::DeleteNode { node }, options).await?;
    if options.dry_run {
        return Ok(services::dry_run(&done, None));
    }
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn show(app: &App, published: &Published, name: &Name, status: StatusCode) -> Result<Response, Problem> {
    let found = published.state.node(name.as_str());
    let node = found.ok_or_else(|| {
        Problem::not_found(format!("there is no node {name}: no backend names it and no document declares it"))
    })?;
    let view = NodeView::new(node, app.reporter(published).node(node)?);
    Ok((status, [etag(node.generation)], Json(view)).into_response())
}
