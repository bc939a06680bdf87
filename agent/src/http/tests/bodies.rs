//! Bad input: every error is a problem that says what to do, and nothing changes.

use axum::http::{Method, header};
use serde_json::json;

use crate::http::testing::{Agent, shop};

#[tokio::test]
async fn yaml_and_json_are_taken_and_nothing_else() {
    let agent = Agent::new();
    let yaml = "apiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {name: shop}\n\
        spec: {frontends: ['10.96.0.10:80'], backends: [{name: n1, address: '10.0.0.1:8080'}]}\n";
    for (media, body, expected) in [
        ("application/yaml", yaml.to_owned(), 201),
        ("application/yaml; charset=utf-8", yaml.to_owned(), 200),
        ("APPLICATION/JSON", shop().to_string(), 200),
        ("application/json; charset=utf-8", shop().to_string(), 200),
        ("application/json", yaml.to_owned(), 422),
        ("text/plain", yaml.to_owned(), 415),
        ("application/x-www-form-urlencoded", shop().to_string(), 415),
        ("application/merge-patch+json", shop().to_string(), 415),
    ] {
        let (status, _, answer) = agent.send(Method::PUT, "/v1/services/shop", &[("content-type", media)], body).await;
        assert_eq!(status, expected, "{media}: {answer}");
    }
    let (status, ..) = agent.send(Method::PUT, "/v1/services/shop", &[], yaml).await;
    assert_eq!(status, 200, "without a media type the content decides");
    for media in ["application/yaml", "text/plain"] {
        let headers = [("content-type", media)];
        let (status, ..) = agent.send(Method::PATCH, "/v1/services/shop", &headers, "spec: {}").await;
        assert_eq!(status, 415, "{media}");
    }
}

#[tokio::test]
async fn bad_documents_are_refused_by_name() {
    let agent = Agent::with_shop().await;
    let json = [("content-type", "application/json")];
    for (body, field) in
        [("", ""), ("   ", ""), ("{", ""), ("nonsense", ""), ("[]", ""), ("\"text\"", ""), ("{}", "kind")]
    {
        let (status, _, answer) = agent.send(Method::PUT, "/v1/services/shop", &json, body).await;
        assert_eq!((status.as_u16(), answer["field"].as_str().unwrap_or("")), (422, field), "{body:?}: {answer}");
    }
    type Edit = fn(&mut serde_json::Value);
    let edits: [(Edit, &str); 6] = [
        (|d| d["spec"]["colour"] = json!("red"), "spec.colour"),
        (|d| d["spec"]["backends"][1]["weight"] = json!(2_000_000), "spec.backends[1].weight"),
        (|d| d["spec"]["backends"][0]["address"] = json!("10.0.0.1:0"), "spec.backends[0].address"),
        (|d| d["spec"]["frontends"] = json!([]), "spec.frontends"),
        (|d| d["metadata"]["name"] = json!("Shop!"), "metadata.name"),
        (|d| d["spec"]["backends"][0]["address"] = json!("10.96.0.10:80"), "spec.backends[0].address"),
    ];
    for (edit, field) in edits {
        let mut document = shop();
        edit(&mut document);
        let (status, _, answer) = agent.put("/v1/services/shop", &document).await;
        assert_eq!((status.as_u16(), answer["field"].as_str().unwrap_or("")), (422, field), "{answer}");
    }
    let (_, headers, _) = agent.get("/v1/services/shop").await;
    assert_eq!(headers[header::ETAG], "\"1\"", "nothing changed");
}

#[tokio::test]
async fn a_body_over_four_mebibytes_is_too_large() {
    let agent = Agent::new();
    let json = [("content-type", "application/json")];
    let large = vec![b' '; (4 << 20) + 1];
    for (method, path) in [
        (Method::PUT, "/v1/services/shop"),
        (Method::PATCH, "/v1/services/shop"),
        (Method::POST, "/v1/nodes/node-1/zero"),
        (Method::POST, "/v1/apply"),
    ] {
        let (status, _, answer) = agent.send(method.clone(), path, &json, large.clone()).await;
        assert_eq!(status, 413, "{method} {path}: {answer}");
    }
    let fits = vec![b' '; 4 << 20];
    let (status, ..) = agent.send(Method::PUT, "/v1/services/shop", &json, fits).await;
    assert_eq!(status, 422);
}

#[tokio::test]
async fn what_is_not_there_is_said_as_a_problem() {
    let agent = Agent::with_shop().await;
    for (method, path, expected) in [
        (Method::GET, "/", 404),
        (Method::GET, "/v1/nothing", 404),
        (Method::GET, "/v1/services/", 404),
        (Method::GET, "/v1/services/%ff", 404),
        (Method::GET, "/v1/services/no%20name", 404),
        (Method::GET, "/v1/nodes/none", 404),
        (Method::GET, "/v1/services/shop/backends/none", 404),
        (Method::POST, "/v1/services", 405),
        (Method::DELETE, "/metrics", 405),
        (Method::PUT, "/v1/services/shop/backends/n1", 405),
        (Method::GET, "/v1/services?limit=1", 400),
        (Method::GET, "/v1/connections?limit=-1", 400),
        (Method::GET, "/v1/connections?state=gone", 400),
        (Method::GET, "/v1/events?follow=perhaps", 400),
        (Method::GET, "/v1/explain", 400),
        (Method::GET, "/v1/explain?to=nowhere", 400),
        (Method::GET, "/v1/explain?to=10.96.0.10:80&from=someone", 400),
        (Method::GET, "/v1/explain?to=10.96.0.10:80&from=pid:4294967295", 400),
    ] {
        let (status, headers, answer) = agent.send(method.clone(), path, &[], "").await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
        if status == 405 {
            assert!(headers.contains_key(header::ALLOW), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn refusals_are_counted() {
    let agent = Agent::new();
    agent.put("/v1/services/shop", &json!({})).await;
    let (_, _, text) = agent.get("/metrics").await;
    let errors = crate::http::testing::samples(text.as_str().unwrap(), "sluice_config_errors_total");
    assert_eq!(errors["{source=\"api\"}"], 1.0);
}

#[tokio::test]
async fn a_stopped_steering_thread_is_said() {
    let agent = Agent::with_shop().await;
    let (publish, published) = tokio::sync::watch::channel(agent.published());
    drop(publish);
    let (commands, asked) = std::sync::mpsc::channel();
    drop(asked);
    let handle = crate::engine::Handle::new(
        commands,
        published,
        agent.readings.clone(),
        agent.app.handle.events().clone(),
        agent.app.handle.operations().clone(),
        agent.app.handle.instruments().clone(),
        crate::engine::client::MonitorHandle::absent(),
    );
    let stopped = Agent { app: crate::http::App::new(handle, agent.stop.subscribe()), ..agent };
    let (status, _, answer) = stopped.put("/v1/services/shop", &shop()).await;
    assert_eq!(status, 503, "{answer}");
    assert_eq!(stopped.get("/v1/services/shop").await.0, 200, "reads go on");
}
