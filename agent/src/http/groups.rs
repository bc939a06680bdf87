//! /v1/services/{service}/groups/{group}: one group of a service.

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};

use super::{
    App,
    conditions::{Conditions, etag},
    parameters::{Ask, GroupOf, NoQuery, WriteQuery},
    problem::{Problem, ReadProblems, WriteProblems},
    services, stream,
    write::Write,
};
use crate::{
    model::{Change, Name, Service, State as Desired, document::GroupDocument},
    view::{published::Published, status::GroupStatus},
};

/// One group with its shares. The ETag is the generation of the service.
#[utoipa::path(get, path = "/v1/services/{service}/groups/{group}", tag = "services",
    params(("service" = Name, Path), ("group" = Name, Path)),
    responses((status = 200, description = "The group", body = GroupStatus), ReadProblems))]
pub async fn get(State(app): State<App>, of: GroupOf, _: Ask<NoQuery>) -> Result<Response, Problem> {
    let published = app.handle.published();
    let tag = etag(find(&published.state, &of)?.generation);
    let shown = stream::one(&app, move |app| Ok(view(app, &published, &of)?)).await?;
    Ok(([tag], shown).into_response())
}

/// Changes a group by a merge patch (RFC 7396): `{"weight": 10}` changes its weight.
#[utoipa::path(patch, path = "/v1/services/{service}/groups/{group}", tag = "services",
    params(("service" = Name, Path), ("group" = Name, Path), WriteQuery),
    request_body(content((Object = "application/merge-patch+json"), (Object = "application/json"))),
    responses((status = 200, description = "Patched, or with dryRun as it would be", body = GroupStatus), WriteProblems))]
pub async fn patch(
    State(app): State<App>,
    of: GroupOf,
    conditions: Conditions,
    write: Write,
) -> Result<Response, Problem> {
    let if_match = services::expected(&app, &of.service, &conditions)?;
    let GroupOf { service, group } = &of;
    let (service, group) = (service.clone(), group.clone());
    let change = Change::PatchGroup { service, group, patch: write.input.patch()?, if_match };
    let planned = |state: &Desired| {
        let service = find(state, &of).ok()?;
        let group = service.groups.iter().find(|held| held.name == of.group)?;
        Some(serde_json::to_value(GroupDocument { name: group.name.clone(), weight: group.weight }))
    };
    write.make(&app, change, planned, |done| show(&app, &done.published, &of)).await
}

/// The service of a group, if its document has that group.
fn find<'a>(state: &'a Desired, GroupOf { service, group }: &GroupOf) -> Result<&'a Service, Problem> {
    let found = state.service(service.as_str());
    let found = found.ok_or_else(|| Problem::not_found(format!("there is no service {service}")))?;
    if found.groups_given && found.groups.iter().any(|held| held.name == *group) {
        return Ok(found);
    }
    Err(no_group(&found.name, group))
}

fn show(app: &App, published: &Published, of: &GroupOf) -> Result<Response, Problem> {
    let service = find(&published.state, of)?;
    Ok(([etag(service.generation)], Json(view(app, published, of)?)).into_response())
}

fn view(app: &App, published: &Published, of: &GroupOf) -> Result<GroupStatus, Problem> {
    let service = find(&published.state, of)?;
    let groups = app.reporter(published).service(service)?.groups;
    let status = groups.into_iter().find(|status| status.name == of.group);
    status.ok_or_else(|| no_group(&service.name, &of.group))
}

fn no_group(service: &Name, group: &Name) -> Problem {
    Problem::not_found(format!("service {service} has no group {group}"))
}
