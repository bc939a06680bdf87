//! The OpenAPI document, made from the routes and the types that they speak.

use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};

use super::router;
use crate::observe::events::EventKind;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluice",
        description = "Steers connections to weighted backends inside the Linux kernel. The Unix socket serves all of it; \
            over TCP reads are free, and writes need the bearer token where the agent was given one.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT"),
    ),
    components(schemas(EventKind)),
    security((), ("bearer" = [])),
    modifiers(&Bearer),
    tags(
        (name = "services", description = "What is steered, and where to"),
        (name = "nodes", description = "Hosts that backends run on"),
        (name = "traffic", description = "What really happens"),
        (name = "operations", description = "What was asked of a node or backend"),
        (name = "agent", description = "The agent itself"),
    ),
)]
pub struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// The whole document.
pub fn document() -> utoipa::openapi::OpenApi {
    router::routes().into_openapi()
}
