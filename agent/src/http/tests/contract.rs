//! What the API says of itself: a valid description, which every answer of these tests keeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, OnceLock},
};

use axum::http::{Method, StatusCode};
use jsonschema::Validator;
use serde_json::{Value, json};

/// `schema.json` of OpenAPI 3.1, as <https://spec.openapis.org/oas/3.1/schema/2022-10-07> has it.
const OPENAPI_SCHEMA: &str = include_str!("openapi-3.1.json");
/// Ways of a description's path.
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

fn description() -> &'static Value {
    static DESCRIPTION: OnceLock<Value> = OnceLock::new();
    DESCRIPTION.get_or_init(|| serde_json::to_value(crate::http::openapi::document()).unwrap())
}

fn complaints(validator: &Validator, value: &Value) -> Vec<String> {
    validator.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Fails unless the answer is what the description says of this path, method and status. Paths that it does not have, and
/// answers that are not JSON, are others' to check.
pub fn check(method: &Method, path: &str, status: StatusCode, body: &Value) {
    let path = path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').collect();
    let fits = |template: &&String| {
        let template: Vec<&str> = template.split('/').collect();
        template.len() == parts.len()
            && template.iter().zip(&parts).all(|(wanted, part)| wanted.starts_with('{') || wanted == part)
    };
    let paths = description()["paths"].as_object().unwrap();
    let Some(template) = paths.keys().find(fits) else { return };
    let operation = &paths[template][method.as_str().to_lowercase()];
    if operation.is_null() {
        return;
    }
    let answer = &operation["responses"][status.as_str()];
    assert!(answer.is_object() || !status.is_success(), "{method} {template} answers {status}, which is not described");
    // What guards the routes, or fails below them, is not described with each.
    let problem = json!({"$ref": "#/components/schemas/Problem"});
    let content = answer["content"].as_object().and_then(|content| content.values().next());
    let schema = match content {
        Some(content) => &content["schema"],
        None if status.is_success() => return assert_eq!(body, "", "{method} {template} {status} has a body"),
        None => &problem,
    };
    if body.is_string() {
        return;
    }
    static VALIDATORS: Mutex<BTreeMap<String, Validator>> = Mutex::new(BTreeMap::new());
    let mut validators = VALIDATORS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let validator = validators.entry(format!("{method} {template} {status}")).or_insert_with(|| {
        let schema = json!({"allOf": [schema], "components": description()["components"]});
        jsonschema::draft202012::new(&schema).unwrap()
    });
    let complaints = complaints(validator, body);
    assert!(complaints.is_empty(), "{method} {path} {status}: {complaints:#?} of {body}");
}

#[test]
fn the_description_is_valid() {
    let schema: Value = serde_json::from_str(OPENAPI_SCHEMA).unwrap();
    let validator = jsonschema::draft202012::new(&schema).unwrap();
    assert_eq!(complaints(&validator, description()), Vec::<String>::new());
    let schemas = description()["components"]["schemas"].as_object().unwrap();
    let invalid = schemas.iter().filter(|(_, schema)| !jsonschema::meta::is_valid(schema));
    assert_eq!(invalid.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new());
    let paths = description()["paths"].as_object().unwrap();
    let operations = paths.values().flat_map(|path| METHODS.iter().filter_map(|method| path.get(method)));
    let ids: Vec<&str> = operations.map(|operation| operation["operationId"].as_str().unwrap()).collect();
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "each has a name of its own: {ids:?}");
}

#[test]
#[should_panic(expected = "weight")]
fn an_answer_that_contradicts_the_description_is_noticed() {
    let backend = json!({"name": "n1", "address": "10.0.0.1:80", "weight": "five", "status": {}});
    check(&Method::GET, "/v1/services/shop/backends/n1", StatusCode::OK, &backend);
}
