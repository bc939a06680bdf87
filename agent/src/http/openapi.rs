//! The OpenAPI document, made from the routes and the types that they speak.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, RefOr, Required,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

use super::router;
use crate::view::events::EventKind;

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

/// Options of actions: all of them may be left out, and so may the body.
const OPTIONS: [&str; 4] = ["DrainBody", "ZeroRequest", "RestoreRequest", "ShrinkRequest"];

/// The whole document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = router::routes().into_openapi();
    let actions = document.paths.paths.values_mut().filter_map(|path| path.post.as_mut()?.request_body.as_mut());
    for body in actions {
        if let RefOr::T(body) = body
            && body.content.values().any(are_options)
        {
            body.required = Some(Required::False);
        }
    }
    document
}

fn are_options(content: &RefOr<Content>) -> bool {
    let RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. }) = content else { return false };
    OPTIONS.iter().any(|name| schema.ref_location.ends_with(&format!("/{name}")))
}
