//! The route table: what is served is what the OpenAPI document says.

use axum::{Router, extract::Request, http::StatusCode, middleware};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    Access, App, access, apply, backends, brake, connections, drain, events, explain, groups, history, meta, monitor,
    nodes, openapi::Description, operations, problem::Problem, ready, services, unread, zero,
};
use crate::telemetry::Source;

/// All routes with their description.
pub fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(services::list))
        .routes(routes!(services::get, services::put, services::patch, services::delete))
        .routes(routes!(backends::get, backends::patch))
        .routes(routes!(groups::get, groups::patch))
        .routes(routes!(zero::zero_backend))
        .routes(routes!(drain::drain_backend))
        .routes(routes!(zero::restore_backend))
        .routes(routes!(ready::ready))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::get, nodes::put, nodes::delete))
        .routes(routes!(zero::zero_node))
        .routes(routes!(drain::drain_node))
        .routes(routes!(zero::restore_node))
        .routes(routes!(apply::apply))
        .routes(routes!(brake::accept_shrink))
        .routes(routes!(operations::list))
        .routes(routes!(operations::get))
        .routes(routes!(history::list))
        .routes(routes!(history::undo))
        .routes(routes!(connections::list))
        .routes(routes!(explain::explain))
        .routes(routes!(events::stream))
        .routes(routes!(monitor::stream))
        .routes(routes!(meta::metrics))
        .routes(routes!(meta::healthz))
        .routes(routes!(meta::readyz))
        .routes(routes!(meta::openapi))
}

/// The service behind a listener.
pub fn router(app: App, access: Access) -> Router {
    let (router, _) = routes().split_for_parts();
    router
        .fallback(unknown)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(app.clone(), count_refusals))
        .layer(middleware::from_fn_with_state(access, access::check))
        .layer(middleware::from_fn(unread::finish))
        .with_state(app)
}

async fn unknown(request: Request) -> Problem {
    Problem::not_found(format!("there is no {}; GET /openapi.json lists what there is", request.uri().path()))
}

async fn not_allowed(request: Request) -> Problem {
    let detail = format!("{} has no {}; the header Allow names what it has", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail)
}

/// Counts changes that could not be used.
async fn count_refusals(
    axum::extract::State(app): axum::extract::State<App>,
    request: Request,
    next: middleware::Next,
) -> axum::response::Response {
    let is_write = !access::is_read(request.method());
    let response = next.run(request).await;
    let status = response.status();
    if is_write && (status == StatusCode::UNPROCESSABLE_ENTITY || status.is_server_error()) {
        app.handle.instruments().refused(Source::Api);
    }
    response
}
