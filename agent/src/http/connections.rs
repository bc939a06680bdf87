//! /v1/connections: steered connections with their processes.

use std::collections::BTreeMap;

use axum::{extract::State, response::Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    parameters::Ask,
    problem::{Problem, ReadProblems},
    stream,
};
use crate::view::connections::{self, Connection, Filter, Found, SessionKind, SocketState};

/// Connections of an answer when nobody says how many.
const LIMIT: usize = 1000;
/// Most connections of an answer: it is made in memory.
pub const MOST: usize = 10_000;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ConnectionsQuery {
    #[param(required = false)]
    service: Option<String>,
    #[param(required = false)]
    backend: Option<String>,
    #[param(required = false)]
    node: Option<String>,
    #[param(required = false, inline)]
    state: Option<SocketState>,
    /// Most connections to list; 1000 when not said, and never more than 10000.
    #[param(required = false)]
    limit: Option<usize>,
}

/// Steered connections that fit, in no order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Connections {
    pub items: Vec<Connection>,
    /// How many fit in all; more than there are items when `limit` cut them off.
    pub total: usize,
    /// Besides: flows of unconnected datagram sockets that stay with their backends, of the backends that fit. They have no
    /// state, and count when none is asked for.
    #[serde(default)]
    #[schema(required)]
    pub flows: u64,
    /// How many of them all a drain does not close for being idle, by what speaks for a session.
    #[serde(default)]
    pub sessions: BTreeMap<SessionKind, usize>,
}

/// The steered connections of this host, in all network namespaces.
#[utoipa::path(get, path = "/v1/connections", operation_id = "list_connections", tag = "traffic", params(ConnectionsQuery),
    responses((status = 200, description = "Those that match", body = Connections), ReadProblems))]
pub async fn list(State(app): State<App>, Ask(query): Ask<ConnectionsQuery>) -> Result<Response, Problem> {
    let ConnectionsQuery { service, backend, node, state, limit } = query;
    let limit = limit.unwrap_or(LIMIT).min(MOST);
    let turn = app.allowance.censuses.clone().acquire_owned().await.map_err(anyhow::Error::new)?;
    // On its own: a caller that leaves does not end a census, which takes as much memory as there are connections.
    let handle = app.handle.clone();
    let read = tokio::spawn(async move {
        let (census, flows) = (handle.census().await?, handle.flows().await?);
        let published = handle.published();
        let listed = tokio::task::spawn_blocking(move || {
            let filter = Filter { service, backend, node, state };
            let flows = connections::flows(&flows, &published.state, &filter);
            (connections::list(&census, &published.state, &filter, limit), flows)
        });
        let listed = listed.await?;
        drop(turn);
        anyhow::Ok(listed)
    });
    let (Found { items, total, sessions }, flows) = read.await.map_err(anyhow::Error::new)??;
    stream::one(&app, move |_| Ok(Connections { items, total, flows, sessions })).await
}
