//! The HTTP contract with a live agent behind it: listeners, tags, operations, events, explanations.

use std::{collections::BTreeMap, fs};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{
    Agent, Namespace, Service,
    agent::free_port,
    http::{Endpoint, Request, Response},
};

use crate::{
    agree::explain,
    stage::{FRONTEND, Stage, assert_all_answered, assert_exact, weighted},
};

/// A stage whose agent also listens on TCP.
fn listening(label: &str, flags: impl FnOnce(Agent) -> Agent) -> Result<(Stage, Endpoint)> {
    let port = free_port(&Namespace::host()?)?;
    let mut stage = Stage::with(label, |agent| flags(agent.listen(&format!("127.0.0.1:{port}"))))?;
    let service = stage.service(&[3, 1])?;
    stage.put(&service)?;
    Ok((stage, Endpoint::Tcp(([127, 0, 0, 1], port).into())))
}

fn zero(endpoint: &Endpoint, token: Option<&str>) -> Result<Response> {
    let request = Request::json(&json!({}));
    let request = token.into_iter().fold(request, |request, token| request.header("authorization", token));
    endpoint.request("POST", "/v1/nodes/n1/zero", &request)
}

const READS: [&str; 9] = [
    "/v1/services",
    "/v1/services/shop",
    "/v1/services/shop/backends/b1",
    "/v1/nodes",
    "/v1/connections",
    "/v1/explain?to=10.96.0.10:80",
    "/v1/operations",
    "/metrics",
    "/openapi.json",
];

#[test]
fn over_tcp_there_are_only_reads() -> Result<()> {
    let (stage, tcp) = listening("tcp", |agent| agent)?;
    for path in READS {
        tcp.request("GET", path, &Request::new())?.expect_status(200);
    }
    zero(&tcp, None)?.expect_status(403);
    zero(&tcp, Some("Bearer whatever"))?.expect_status(403);
    for method in ["PUT", "PATCH", "DELETE"] {
        let request = Request::json(&weighted(&[0]).json());
        tcp.request(method, "/v1/services/shop", &request)?.expect_status(403);
    }
    assert_exact(&stage.client()?.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}

#[test]
fn with_a_token_file_writes_over_tcp_need_the_token() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("token");
    fs::write(&file, "s3cret-of-16-or-more\n")?;
    let path = file.to_string_lossy().into_owned();
    let (stage, tcp) = listening("token", |agent| agent.argument("--token-file").argument(&path))?;
    let client = stage.client()?;
    for wrong in [
        None,
        Some("Bearer wrong"),
        Some("Bearer "),
        Some("s3cret-of-16-or-more"),
        Some("Basic s3cret-of-16-or-more"),
        Some("Bearer s3cret-of-16-or-more2"),
    ] {
        let answer = zero(&tcp, wrong)?.expect_status(401);
        assert!(answer.header("www-authenticate").is_some_and(|scheme| scheme.starts_with("Bearer")), "{wrong:?}");
    }
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.75), ("b2", 0.25)]);
    zero(&tcp, Some("Bearer s3cret-of-16-or-more"))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 20).answered_by("b2"), 20);
    for path in ["/metrics", "/healthz", "/readyz", "/v1/services"] {
        tcp.request("GET", path, &Request::new())?.expect_status(200);
    }
    // Another token holds from its first request on, and no more the old one.
    stage.restore("node/n1")?;
    fs::write(&file, "another-of-16-or-more\n")?;
    zero(&tcp, Some("Bearer s3cret-of-16-or-more"))?.expect_status(401);
    zero(&tcp, Some("Bearer another-of-16-or-more"))?.expect_status(200);
    // The Unix socket is guarded by its mode.
    stage.restore("node/n1")?;
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(stage.agent.socket())?.permissions().mode() & 0o777, 0o660);
    Ok(())
}

#[test]
fn a_request_over_tcp_asks_for_the_agent_by_its_own_name() -> Result<()> {
    let (_stage, tcp) = listening("host", |agent| agent.argument("--allow-host").argument("node-1.example"))?;
    let asked = |host: &str| tcp.request("GET", "/v1/services", &Request::new().header("host", host));
    for ours in ["localhost", "127.0.0.1", "[::1]:9180", "node-1.example:9180"] {
        asked(ours)?.expect_status(200);
    }
    for strange in ["evil.example", "10.0.0.1", "localhost.evil.example:9180"] {
        asked(strange)?.expect_status(421);
    }
    tcp.request("GET", "/healthz", &Request::new().header("host", "localhost").header("host", "evil.example"))?
        .expect_status(400);
    Ok(())
}

#[test]
fn services_are_made_shown_and_deleted() -> Result<()> {
    let mut stage = Stage::new("crud")?;
    let client = stage.client()?;
    let service = stage.service(&[1, 1])?;
    let list = || -> Result<Vec<String>> {
        let items = stage.agent.get("/v1/services")?.expect_status(200).json();
        Ok(items["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["metadata"]["name"].as_str().unwrap().to_owned())
            .collect())
    };
    assert_eq!(list()?, Vec::<String>::new());
    let made = stage.agent.put("/v1/services/shop", &service.json())?.expect_status(201);
    assert!(made.header("etag").is_some());
    assert_all_answered(&client.spread(FRONTEND, 10));
    // The same again changes nothing, also not the tag.
    let same = stage.agent.put("/v1/services/shop", &service.json())?.expect_status(200);
    assert_eq!(same.header("etag"), made.header("etag"));
    let replaced = stage.agent.put("/v1/services/shop", &weighted(&[2, 1]).json())?.expect_status(200);
    assert_ne!(replaced.header("etag"), made.header("etag"));
    let shown = replaced.json();
    assert_eq!(shown["status"]["generation"], shown["status"]["observedGeneration"]);
    let yaml = Request::new().body("application/yaml", "apiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {name: a}\nspec: {frontends: ['10.96.0.11:80'], backends: []}\n");
    stage.agent.request("PUT", "/v1/services/a", &yaml)?.expect_status(201);
    assert_eq!(list()?, ["a", "shop"]);
    stage.agent.delete("/v1/services/shop")?.expect_status(204);
    stage.agent.get("/v1/services/shop")?.expect_status(404);
    assert_eq!(client.spread(FRONTEND, 3).errors(), [("ENETUNREACH".to_owned(), 3)].into());
    // The frontend is free for another.
    let other = Service::new("other", FRONTEND).backend("b1", "10.0.0.1:8080", 1);
    stage.agent.put("/v1/services/other", &other.json())?.expect_status(201);
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b1"), 10);
    Ok(())
}

#[test]
fn operations_can_be_asked_for() -> Result<()> {
    let stage = Stage::weights("operations", &[1, 1])?;
    let answer = stage.zero("node/n1")?;
    let id = answer["operation"].as_str().expect("the id of an operation");
    let path = format!("/v1/operations/{id}");
    let operation = stage.agent.get(&path)?.expect_status(200).json();
    assert_eq!((&operation["id"], &operation["target"]), (&json!(id), &json!("node/n1")));
    for field in ["kind", "phase", "startedAt", "finishedAt", "remaining", "message"] {
        assert!(!operation[field].is_null(), "{field}: {operation}");
    }
    assert_eq!(operation["remaining"]["total"], 0);
    stage.agent.get(&format!("{path}?wait=zeroed&timeout=30s"))?.expect_status(200);
    stage.agent.get(&format!("{path}?wait=forever"))?.expect_status(400);
    stage.restore("node/n1")?;
    let all = stage.agent.get("/v1/operations")?.expect_status(200).json();
    let kinds: Vec<&Value> = all["items"].as_array().unwrap().iter().map(|operation| &operation["kind"]).collect();
    assert_eq!(kinds, ["zero", "restore"]);
    Ok(())
}

#[test]
fn events_are_told_and_can_be_resumed() -> Result<()> {
    let stage = Stage::weights("events", &[1, 1])?;
    let from_now = stage.agent.endpoint().stream("/v1/events", &Request::new())?;
    stage.zero("node/n1")?;
    stage.restore("node/n1")?;
    let mut seen = Vec::new();
    let mut id = String::new();
    for line in from_now {
        let line = line?;
        if let Some(found) = line.strip_prefix("id:") {
            id = found.trim().to_owned();
        } else if let Some(data) = line.strip_prefix("data:") {
            let event: Value = serde_json::from_str(data)?;
            seen.push((id.clone(), event["kind"].as_str().unwrap_or_default().to_owned()));
            if seen.len() == 2 {
                break;
            }
        }
    }
    assert_eq!(seen.iter().map(|(_, kind)| kind.as_str()).collect::<Vec<_>>(), ["zeroed", "restored"]);
    // From the first on, nothing is missed.
    let resume = Request::new().header("last-event-id", &seen[0].0);
    let again = stage.agent.endpoint().stream("/v1/events", &resume)?;
    let first = again.map_while(Result::ok).find_map(|line| line.strip_prefix("id:").map(|id| id.trim().to_owned()));
    assert_eq!(first.as_deref(), Some(seen[1].0.as_str()));
    Ok(())
}

#[test]
fn the_description_names_what_is_served() -> Result<()> {
    let stage = Stage::new("openapi")?;
    let description = stage.agent.get("/openapi.json")?.expect_status(200).json();
    assert!(
        description["openapi"].as_str().is_some_and(|version| version.starts_with("3.1")),
        "{}",
        description["openapi"]
    );
    let paths = description["paths"].as_object().unwrap();
    for (path, methods) in [
        ("/v1/services", ["get"].as_slice()),
        ("/v1/services/{service}", &["get", "put", "patch", "delete"]),
        ("/v1/services/{service}/backends/{backend}", &["get", "patch"]),
        ("/v1/services/{service}/backends/{backend}/zero", &["post"]),
        ("/v1/nodes/{node}", &["get"]),
        ("/v1/nodes/{node}/zero", &["post"]),
        ("/v1/nodes/{node}/restore", &["post"]),
        ("/v1/connections", &["get"]),
        ("/v1/explain", &["get"]),
        ("/v1/events", &["get"]),
        ("/metrics", &["get"]),
    ] {
        let found = paths.get(path).unwrap_or_else(|| panic!("{path} is none of {:?}", paths.keys()));
        for method in methods {
            assert!(found[method].is_object(), "{method} {path}");
        }
    }
    Ok(())
}

#[test]
fn explain_says_why_the_others_are_out() -> Result<()> {
    let stage = Stage::weights("why", &[70, 30, 0, 5, 5])?;
    let reason = serde_json::json!({"reason": "kernel panic", "owner": "ops"});
    stage.agent.post("/v1/nodes/n4/zero", &reason)?.expect_status(200);
    stage.agent.post("/v1/services/shop/backends/b5/zero", &reason)?.expect_status(200);
    let explained = explain(&stage, FRONTEND, "10.9.0.1")?;
    assert_eq!((&explained["service"], &explained["verdict"]), (&"shop".into(), &"steered".into()));
    let out: BTreeMap<&str, &str> = explained["out"]
        .as_array()
        .unwrap()
        .iter()
        .map(|out| (out["backend"].as_str().unwrap(), out["why"].as_str().unwrap()))
        .collect();
    assert!(out["b3"].contains("weight is 0"), "{out:?}");
    for (backend, word) in [("b4", "node n4"), ("b4", "ops"), ("b5", "kernel panic")] {
        assert!(out[backend].contains(word), "{out:?}");
    }
    assert_eq!(out.len(), 3);
    // No path out of the cgroups tells what files there are.
    let outside = |file: &str| -> Result<Value> {
        let path = format!("/v1/explain?to={FRONTEND}&from=cgroup:/../../../../../{file}");
        Ok(stage.agent.get(&path)?.expect_status(400).json()["detail"].clone())
    };
    let told = |file: &str| -> Result<String> { Ok(outside(file)?.as_str().unwrap_or_default().replace(file, "")) };
    assert_eq!(told("etc/passwd")?, told("etc/no-such-file")?);
    // What is no frontend goes untouched.
    assert_eq!(explain(&stage, "10.96.0.99:80", "")?["verdict"], "untouched");
    let wrong = stage.agent.get("/v1/explain?to=nonsense")?.expect_status(400).json();
    assert_eq!(wrong["field"], "to");
    Ok(())
}
