//! /v1/explain: where a connection would go, and why.

use axum::{extract::State, response::Response};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    App,
    parameters::Ask,
    problem::{Problem, ReadProblems},
    stream,
};
use crate::{
    host::caller::{Caller, From},
    model::Frontend,
    view::explain::{self, Explanation},
};

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExplainQuery {
    /// Where the caller connects to, such as `10.96.0.10:80` or `10.96.0.10:53/udp`.
    to: String,
    /// Who calls: the IP address that its socket is bound to, `pid:NUMBER` or `cgroup:PATH`; several separated by
    /// commas. With `balance: hash` the answer then names the backend.
    from: Option<String>,
}

/// Which service a connection belongs to, which backends it may go to with which share, and why the others are out.
#[utoipa::path(get, path = "/v1/explain", tag = "traffic", params(ExplainQuery),
    responses((status = 200, description = "What becomes of the call", body = Explanation), ReadProblems))]
pub async fn explain(State(app): State<App>, Ask(query): Ask<ExplainQuery>) -> Result<Response, Problem> {
    let to: Frontend = query.to.parse().map_err(|error| Problem::bad_request(format!("{error}")).at("to"))?;
    let facts = query.from.iter().flat_map(|from| from.split(',')).map(str::trim).filter(|fact| !fact.is_empty());
    let facts: Vec<From> = facts
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|error| Problem::bad_request(format!("{error}")).at("from"))?;
    let caller = if facts.is_empty() {
        None
    } else {
        let found = tokio::task::spawn_blocking(move || Caller::find(&facts)).await.map_err(anyhow::Error::new)?;
        Some(found.map_err(|error| Problem::bad_request(format!("{error:#}")).at("from"))?)
    };
    stream::one(&app, move |app| {
        let published = app.handle.published();
        explain::explain(&published, &**app.handle.readings(), app.handle.operations(), to, caller.as_ref())
    })
    .await
}
