//! What monitors and tools ask: health, readiness, metrics, the OpenAPI document.

use std::sync::LazyLock;

use axum::{
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;

use super::{
    App,
    parameters::{Ask, NoQuery},
    problem::{Problem, ReadProblems},
    stream,
};
use crate::{telemetry::scrape::Scrape, view::published::AgentReadiness};

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The agent runs.
#[utoipa::path(get, path = "/healthz", tag = "agent", responses((status = 200, description = "It does", body = String)))]
pub async fn healthz() -> &'static str {
    "ok\n"
}

/// The kernel's tables hold what is desired, and the programs that read them are attached. A second line tells of a TCP
/// address that another program has taken, which stands in the way of nothing else.
#[utoipa::path(get, path = "/readyz", tag = "agent",
    responses((status = 200, description = "They do", body = String),
        (status = 503, description = "Not yet, or not any more", body = Problem, content_type = "application/problem+json")))]
pub async fn readyz(State(app): State<App>) -> Response {
    match &app.handle.published().ready {
        AgentReadiness::Ready => match app.awaited() {
            None => "ready\n".into_response(),
            Some(address) => {
                format!("ready\n{address} is taken by another program: it is not served\n").into_response()
            }
        },
        AgentReadiness::NotReady(why) => {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}")).into_response()
        }
    }
}

/// Metrics in the text format of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "agent",
    responses((status = 200, description = "In the text format of Prometheus", body = String, content_type = "text/plain"), ReadProblems))]
pub async fn metrics(State(app): State<App>) -> Result<Response, Problem> {
    stream::respond(&app.clone(), METRICS, move |out| {
        let published = app.handle.published();
        let scrape =
            Scrape { published: &published, readings: &**app.handle.readings(), instruments: app.handle.instruments() };
        scrape.write(out)
    })
    .await
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", tag = "agent", responses((status = 200, description = "This document", body = Object), ReadProblems))]
pub async fn openapi(_: Ask<NoQuery>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.clone()).into_response()
}

/// Made once: that takes longer than all other reads, and it is always the same.
static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
    // A description always becomes JSON.
    serde_json::to_vec(&super::document()).unwrap_or_default().into()
});
