//! The OpenAPI document, made from the routes and the types that they speak.

use utoipa::{
    Modify, OpenApi,
    openapi::{
        Content, Object, OneOfBuilder, Ref, RefOr, Required, Schema,
        path::{Operation, PathItem},
        schema::AnyOfBuilder,
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
const OPTIONS: [&str; 5] = ["DrainBody", "ZeroRequest", "RestoreRequest", "ShrinkRequest", "UndoRequest"];

/// Answers of writes, which are another with `dryRun`.
const WRITTEN: [&str; 3] = ["ServiceView", "NodeView", "BackendView"];

/// The whole document.
pub fn document() -> utoipa::openapi::OpenApi {
    let mut document = router::routes().into_openapi();
    for PathItem { get, put, post, delete, patch, .. } in document.paths.paths.values_mut() {
        [get, put, post, delete, patch].into_iter().flatten().for_each(complete);
    }
    let schemas = document.components.iter_mut().flat_map(|components| components.schemas.values_mut());
    schemas.for_each(allow_absence);
    document
}

/// Says of one operation what its attributes cannot.
fn complete(operation: &mut Operation) {
    if let Some(RefOr::T(body)) = &mut operation.request_body
        && body.content.values().any(|content| refers_to(content, &OPTIONS))
    {
        body.required = Some(Required::False);
    }
    let parameters = operation.parameters.iter().flatten();
    let has_plan = parameters.clone().any(|parameter| matches!(parameter, RefOr::T(found) if found.name == "dryRun"));
    let Some(RefOr::T(done)) = operation.responses.responses.get_mut("200").filter(|_| has_plan) else { return };
    for content in done.content.values_mut().filter(|content| refers_to(content, &WRITTEN)) {
        if let RefOr::T(Content { schema: Some(schema), .. }) = content {
            let plan = Ref::from_schema_name("DryRun");
            *schema = RefOr::T(Schema::OneOf(OneOfBuilder::new().item(schema.clone()).item(plan).build()));
        }
    }
}

fn refers_to(content: &RefOr<Content>, names: &[&str]) -> bool {
    let RefOr::T(Content { schema: Some(RefOr::Ref(schema)), .. }) = content else { return false };
    names.iter().any(|name| schema.ref_location.ends_with(&format!("/{name}")))
}

/// A flattened field that may be absent is described as "all of: that or null", which no object is.
fn allow_absence(schema: &mut RefOr<Schema>) {
    let RefOr::T(Schema::AllOf(all)) = schema else { return };
    for part in &mut all.items {
        if let RefOr::T(Schema::OneOf(optional)) = part {
            let present = optional.items.iter().filter(|item| matches!(item, RefOr::Ref(_))).cloned();
            let any = present.fold(AnyOfBuilder::new(), AnyOfBuilder::item);
            *part = RefOr::T(Schema::AnyOf(any.item(Object::new()).build()));
        }
    }
}
