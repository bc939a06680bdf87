//! /v1/nodes: hosts that backends run on.

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};

use super::{
    App,
    conditions::etag,
    parameters::{self, Ask, At, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    stream,
    views::{DryRun, List, NodeView},
    write::{self, Write, must_name},
};
use crate::{
    engine::client::Done,
    model::{Change, Name, Node, State as Desired, document::NodeDocument, parse},
    view::published::Published,
};

/// All nodes with their status.
#[utoipa::path(get, path = "/v1/nodes", operation_id = "list_nodes", tag = "nodes", responses((status = 200, description = "All, in the order of names", body = List<NodeView>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    stream::list(&app.clone(), move |items| {
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
#[utoipa::path(get, path = "/v1/nodes/{node}", operation_id = "get_node", tag = "nodes", params(("node" = Name, Path)),
    responses((status = 200, description = "The node", body = NodeView), ReadProblems))]
pub async fn get(State(app): State<App>, At(name): At<String>, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let name = parameters::node(&name)?;
    let published = app.handle.published();
    let tag = etag(find(&published, &name)?.generation);
    let shown = stream::one(&app, move |app| view(app, &published, find(&published, &name)?)).await?;
    Ok(([tag], shown).into_response())
}

/// Declares a node, or replaces its document.
#[utoipa::path(put, path = "/v1/nodes/{node}", operation_id = "put_node", tag = "nodes",
    params(("node" = Name, Path, description = "Must be the document's metadata.name"), WriteQuery),
    request_body(content((NodeDocument = "application/json"), (NodeDocument = "application/yaml"))),
    responses((status = 200, description = "Replaced, or with dryRun the plan", body = NodeView),
        (status = 201, description = "Created", body = NodeView), WriteProblems))]
pub async fn put(State(app): State<App>, At(path): At<String>, write: Write) -> Result<Response, Problem> {
    let (bytes, format) = write.input.documents()?;
    let document = Box::new(parse::node(bytes, format)?);
    let name = document.metadata.name.clone();
    must_name(&name, &path)?;
    let planned = |state: &Desired| state.node(name.as_str()).map(|node| serde_json::to_value(node.document()));
    let answer = |done: &Done| {
        write::shown(done, &format!("/v1/nodes/{name}"), |status| show(&app, &done.published, &name, status))
    };
    write.make(&app, Change::PutNode { document }, planned, answer).await
}

/// Forgets a node that no backend names.
#[utoipa::path(delete, path = "/v1/nodes/{node}", operation_id = "delete_node", tag = "nodes", params(("node" = Name, Path), WriteQuery),
    responses((status = 200, description = "With dryRun: the plan", body = DryRun),
        (status = 204, description = "Deleted"), WriteProblems))]
pub async fn delete(State(app): State<App>, At(name): At<String>, write: Write) -> Result<Response, Problem> {
    let change = Change::DeleteNode { node: parameters::node(&name)? };
    write.make(&app, change, |_| None, |_| Ok(StatusCode::NO_CONTENT.into_response())).await
}

fn show(app: &App, published: &Published, name: &Name, status: StatusCode) -> Result<Response, Problem> {
    let node = find(published, name)?;
    Ok((status, [etag(node.generation)], Json(view(app, published, node)?)).into_response())
}

fn find<'a>(published: &'a Published, name: &Name) -> Result<&'a Node, Problem> {
    let found = published.state.node(name.as_str()).map(AsRef::as_ref);
    found.ok_or_else(|| {
        Problem::not_found(format!("there is no node {name}: no backend names it and no document declares it"))
    })
}

fn view(app: &App, published: &Published, node: &Node) -> anyhow::Result<NodeView> {
    Ok(NodeView::new(node, app.reporter(published).node(node)?))
}
