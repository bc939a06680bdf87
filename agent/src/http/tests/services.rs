//! Documents in and out: services, backends, nodes, many at once.

use axum::http::{Method, header};
use serde_json::json;

use crate::http::testing::{Agent, shop};

#[tokio::test]
async fn a_service_is_made_shown_and_removed() {
    let agent = Agent::new();
    let (status, _, body) = agent.get("/v1/services/shop").await;
    assert_eq!(status, 404, "{body}");
    let (status, headers, body) = agent.put("/v1/services/shop", &shop()).await;
    assert_eq!((status.as_u16(), headers[header::ETAG].to_str().unwrap()), (201, "\"1\""), "{body}");
    assert_eq!(headers[header::LOCATION], "/v1/services/shop");
    assert_eq!(body["spec"]["backends"][0]["weight"], 75);
    assert_eq!(body["status"]["generation"], 1);
    assert_eq!(body["status"]["observedGeneration"], 1);
    let backend = &body["status"]["backends"][0];
    assert_eq!((&backend["name"], &backend["state"]), (&json!("n1"), &json!("ready")));
    assert_eq!((&backend["desiredShare"], &backend["programmedShare"]), (&json!(0.75), &json!(0.75)));
    assert_eq!((&backend["observedShare"], &backend["confidence95"]), (&json!(null), &json!([0.0, 1.0])));

    let (status, headers, again) = agent.put("/v1/services/shop", &shop()).await;
    assert_eq!((status.as_u16(), headers[header::ETAG].to_str().unwrap()), (200, "\"1\""), "nothing changed");
    assert_eq!(again["spec"], body["spec"]);

    let (status, _, body) = agent.get("/v1/services").await;
    assert_eq!((status.as_u16(), &body["items"][0]["metadata"]["name"]), (200, &json!("shop")));

    let (status, _, body) = agent.send(Method::DELETE, "/v1/services/shop", &[], "").await;
    assert_eq!((status.as_u16(), body), (204, json!("")));
    let (status, ..) = agent.send(Method::DELETE, "/v1/services/shop", &[], "").await;
    assert_eq!(status, 404);
    assert_eq!(agent.get("/v1/services").await.2, json!({"items": []}));
}

#[tokio::test]
async fn collections_are_in_the_order_of_names() {
    let agent = Agent::new();
    for (index, name) in ["b", "c", "a"].iter().enumerate() {
        let mut document = shop();
        document["metadata"]["name"] = json!(name);
        document["spec"]["frontends"] = json!([format!("10.96.0.{}:80", index + 1)]);
        agent.put(&format!("/v1/services/{name}"), &document).await;
    }
    let (_, _, body) = agent.get("/v1/services").await;
    let names: Vec<_> = body["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[tokio::test]
async fn of_two_writers_with_the_same_etag_one_wins() {
    let agent = Agent::with_shop().await;
    let headers = [("content-type", "application/json"), ("if-match", "\"1\"")];
    let mut first = shop();
    first["spec"]["balance"] = json!("random");
    let (status, head, _) = agent.send(Method::PUT, "/v1/services/shop", &headers, first.to_string()).await;
    assert_eq!((status.as_u16(), head[header::ETAG].to_str().unwrap()), (200, "\"2\""));
    let mut second = shop();
    second["spec"]["balance"] = json!("hash");
    let (status, _, body) = agent.send(Method::PUT, "/v1/services/shop", &headers, second.to_string()).await;
    assert_eq!(status, 412, "{body}");
    assert_eq!(agent.get("/v1/services/shop").await.2["spec"]["balance"], "random");

    for (method, path, body) in [
        (Method::PATCH, "/v1/services/shop", "{}"),
        (Method::PATCH, "/v1/services/shop/backends/n1", "{\"weight\": 1}"),
        (Method::DELETE, "/v1/services/shop", ""),
    ] {
        let (status, ..) = agent.send(method.clone(), path, &headers, body).await;
        assert_eq!(status, 412, "{method} {path}");
    }
    let only_new = [("content-type", "application/json"), ("if-none-match", "*")];
    let (status, ..) = agent.send(Method::PUT, "/v1/services/shop", &only_new, shop().to_string()).await;
    assert_eq!(status, 412);
    let mut other = shop();
    other["metadata"]["name"] = json!("other");
    other["spec"]["frontends"] = json!(["10.96.0.11:80"]);
    let (status, ..) = agent.send(Method::PUT, "/v1/services/other", &only_new, other.to_string()).await;
    assert_eq!(status, 201);
    let (status, ..) = agent.send(Method::PATCH, "/v1/services/none", &headers, "{}").await;
    assert_eq!(status, 404, "what is not there is not stale");
}

#[tokio::test]
async fn a_patch_changes_a_part() {
    let agent = Agent::with_shop().await;
    let (status, headers, body) = agent.patch("/v1/services/shop", &json!({"spec": {"balance": "hash"}})).await;
    assert_eq!((status.as_u16(), headers[header::ETAG].to_str().unwrap()), (200, "\"2\""), "{body}");
    assert_eq!((&body["spec"]["balance"], &body["spec"]["backends"][1]["weight"]), (&json!("hash"), &json!(25)));

    let (status, headers, body) = agent.patch("/v1/services/shop/backends/n1", &json!({"weight": 5})).await;
    assert_eq!((status.as_u16(), headers[header::ETAG].to_str().unwrap()), (200, "\"3\""), "{body}");
    assert_eq!((&body["weight"], &body["node"]), (&json!(5), &json!("node-1")));
    assert_eq!(body["status"]["desiredShare"], json!(5.0 / 30.0));
    assert_eq!(agent.get("/v1/services/shop/backends/n1").await.2["weight"], 5);

    for (path, patch, status, field) in [
        ("/v1/services/shop/backends/n1", json!({"weight": -1}), 422, "weight"),
        ("/v1/services/shop/backends/n1", json!({"wait": 1}), 422, "wait"),
        ("/v1/services/shop", json!({"spec": {"minReadyPercent": 101}}), 422, "spec.minReadyPercent"),
        ("/v1/services/shop", json!({"metadata": {"name": "other"}}), 422, "metadata.name"),
        ("/v1/services/none/backends/n1", json!({"weight": 1}), 404, ""),
        ("/v1/services/shop/backends/none", json!({"weight": 1}), 404, ""),
        ("/v1/services/shop/backends/NO%20NAME", json!({"weight": 1}), 404, ""),
    ] {
        let (found, _, body) = agent.patch(path, &patch).await;
        assert_eq!((found.as_u16(), body["field"].as_str().unwrap_or("")), (status, field), "{path} {patch}: {body}");
    }
}

#[tokio::test]
async fn the_path_and_the_document_must_name_the_same() {
    let agent = Agent::new();
    let (status, _, body) = agent.put("/v1/services/shop2", &shop()).await;
    assert_eq!((status.as_u16(), &body["field"]), (422, &json!("metadata.name")));
    let node = json!({"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": "node-1"}});
    let (status, _, body) = agent.put("/v1/nodes/node-2", &node).await;
    assert_eq!((status.as_u16(), &body["field"]), (422, &json!("metadata.name")));
    let (status, _, body) = agent.put("/v1/services/shop", &node).await;
    assert_eq!((status.as_u16(), &body["field"]), (422, &json!("kind")));
}

#[tokio::test]
async fn a_dry_run_shows_the_plan_and_changes_nothing() {
    let agent = Agent::with_shop().await;
    let mut changed = shop();
    changed["spec"]["balance"] = json!("random");
    let node = json!({"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": "node-9"}});
    for (method, path, body, effect) in [
        (Method::PUT, "/v1/services/shop", changed.to_string(), "replaced"),
        (Method::PATCH, "/v1/services/shop", json!({"spec": {"balance": "hash"}}).to_string(), "replaced"),
        (Method::PATCH, "/v1/services/shop/backends/n1", json!({"weight": 0}).to_string(), "replaced"),
        (Method::DELETE, "/v1/services/shop", String::new(), "deleted"),
        (Method::PUT, "/v1/nodes/node-9", node.to_string(), "created"),
        (Method::POST, "/v1/nodes/node-1/zero", String::new(), "replaced"),
        (Method::POST, "/v1/services/shop/backends/n1/zero", String::new(), "replaced"),
        (Method::POST, "/v1/nodes/node-1/restore", String::new(), "unchanged"),
    ] {
        let path = format!("{path}?dryRun=true");
        let (status, _, answer) =
            agent.send(method.clone(), &path, &[("content-type", "application/json")], body).await;
        assert_eq!((status.as_u16(), &answer["effect"]), (200, &json!(effect)), "{method} {path}: {answer}");
        assert_eq!((&answer["dryRun"], answer["plan"].is_array()), (&json!(true), true));
    }
    let (_, headers, body) = agent.get("/v1/services/shop").await;
    assert_eq!((headers[header::ETAG].to_str().unwrap(), &body["spec"]["balance"]), ("\"1\"", &json!("spread")));
    assert_eq!(agent.get("/v1/nodes/node-9").await.0, 404);
    assert_eq!(agent.get("/v1/operations").await.2, json!({"items": []}));
    for wrong in ["dryrun=true", "dryRun=yes", "dryRun"] {
        let (status, _, body) = agent.put(&format!("/v1/services/shop?{wrong}"), &changed).await;
        assert_eq!(status, 400, "{wrong}: {body}");
    }
    assert_eq!(agent.get("/v1/services/shop").await.2["spec"]["balance"], "spread");
}

#[tokio::test]
async fn nodes_are_named_declared_and_forgotten() {
    let agent = Agent::with_shop().await;
    let (_, _, body) = agent.get("/v1/nodes").await;
    let names: Vec<_> = body["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["node-1", "node-2"]);
    assert_eq!((&body["items"][0]["kind"], &body["items"][0]["status"]["state"]), (&json!("Node"), &json!("ready")));
    let document =
        json!({"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": "node-1", "labels": {"rack": "4"}}});
    let (status, _, body) = agent.put("/v1/nodes/node-1", &document).await;
    assert_eq!((status.as_u16(), &body["metadata"]["labels"]["rack"]), (200, &json!("4")), "{body}");
    assert_eq!((&body["status"]["declared"], &body["status"]["backends"]), (&json!(true), &json!(1)));
    let (status, _, body) = agent.send(Method::DELETE, "/v1/nodes/node-1", &[], "").await;
    assert_eq!((status.as_u16(), &body["services"]), (409, &json!(["shop"])), "{body}");
    let (status, ..) = agent.send(Method::DELETE, "/v1/nodes/none", &[], "").await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn many_documents_are_one_change() {
    let agent = Agent::with_shop().await;
    let yaml = [("content-type", "application/yaml")];
    let documents = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1, labels: {rack: '4'}}\n---\n\
        apiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {name: db}\n\
        spec: {frontends: ['10.96.0.20:5432'], backends: [{name: a, address: '10.0.0.9:5432'}]}\n";
    let (status, _, dry) = agent.send(Method::POST, "/v1/apply?dryRun=true", &yaml, documents).await;
    assert_eq!((status.as_u16(), &dry["dryRun"]), (200, &json!(true)), "{dry}");
    assert_eq!(dry["items"][1]["after"]["spec"]["backends"][0]["weight"], 100);
    assert_eq!(dry["items"][0]["before"]["metadata"], json!({"name": "node-1"}));
    assert_eq!(agent.get("/v1/services/db").await.0, 404);

    let (status, _, body) = agent.send(Method::POST, "/v1/apply", &yaml, documents).await;
    assert_eq!(status, 200, "{body}");
    let effects: Vec<_> =
        body["items"].as_array().unwrap().iter().map(|item| (&item["object"], &item["effect"])).collect();
    assert_eq!(effects, [(&json!("node/node-1"), &json!("replaced")), (&json!("service/db"), &json!("created"))]);
    let (_, _, again) = agent.send(Method::POST, "/v1/apply", &yaml, documents).await;
    assert_eq!(again["items"][1]["effect"], "unchanged");

    let half = format!("{documents}---\n{}", shop().to_string().replace("10.96.0.10:80", "10.96.0.20:5432"));
    let half = half.replace("name: db", "name: db2").replace("10.96.0.20:5432'", "10.96.0.21:5432'");
    let (status, _, body) = agent.send(Method::POST, "/v1/apply", &yaml, half).await;
    assert_eq!((status.as_u16(), body["field"].as_str().unwrap()), (422, "spec.frontends[0]"), "{body}");
    assert_eq!(agent.get("/v1/services/db2").await.0, 404, "all or nothing");

    let twice = format!("{documents}---\n{documents}");
    let (status, _, body) = agent.send(Method::POST, "/v1/apply", &yaml, twice).await;
    assert_eq!((status.as_u16(), &body["field"]), (422, &json!("metadata.name")), "{body}");
}
