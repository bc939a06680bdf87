//! Bad input gets a clear answer that names the field, and leaves kernel and store as they were.

use std::{fmt::Write, thread};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{
    Client, Service,
    http::{Request, Response},
};

use crate::stage::{FRONTEND, Stage, assert_exact, backend_address, weighted};

/// What a problem must not change: every document, and the revision of all.
fn snapshot(stage: &Stage) -> Result<String> {
    let mut text = String::new();
    for path in ["/v1/services", "/v1/nodes"] {
        for item in stage.agent.get(path)?.expect_status(200).json()["items"].as_array().unwrap() {
            let status = &item["status"];
            writeln!(text, "{} {} {} {}", item["metadata"], item["spec"], status["generation"], status["state"])?;
        }
    }
    writeln!(text, "{:?}", stage.agent.metric("sluice_config_generation", &[])?)?;
    Ok(text)
}

/// One bad request, and what must be said about it.
struct Bad {
    what: &'static str,
    method: &'static str,
    path: &'static str,
    request: Request,
    status: u16,
    field: Option<&'static str>,
}

impl Bad {
    fn put(what: &'static str, document: &Value, field: &'static str) -> Self {
        let path = "/v1/services/shop";
        Self { what, method: "PUT", path, request: Request::json(document), status: 422, field: Some(field) }
    }

    fn patch(what: &'static str, patch: Value, field: &'static str) -> Self {
        let request = Request::new().body("application/merge-patch+json", patch.to_string());
        Self { what, method: "PATCH", path: "/v1/services/shop", request, status: 422, field: Some(field) }
    }

    fn other(what: &'static str, method: &'static str, path: &'static str, body: Option<Value>, status: u16) -> Self {
        let request = body.map_or_else(Request::new, |body| Request::json(&body));
        Self { what, method, path, request, status, field: None }
    }

    fn at(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }
}

/// Sends all of them, and compares what is there afterwards with what was there before.
fn check(stage: &Stage, client: &Client, all: Vec<Bad>) -> Result<()> {
    let before = snapshot(stage)?;
    let mut wrong = Vec::new();
    for bad in all {
        let answer = stage.agent.request(bad.method, bad.path, &bad.request)?;
        if let Err(error) = is_problem(&answer, bad.status, bad.field) {
            wrong.push(format!("{}: {error}: {} {}", bad.what, answer.status, answer.text()));
        }
        if snapshot(stage)? != before {
            wrong.push(format!("{}: it changed something", bad.what));
        }
        let report = client.spread(FRONTEND, 4);
        if (report.answered_by("b1"), report.answered_by("b2")) != (3, 1) {
            wrong.push(format!("{}: dialled {:?} {:?}", bad.what, report.by_server(), report.errors()));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}

/// RFC 9457, with a sentence and the field at fault.
fn is_problem(answer: &Response, status: u16, field: Option<&str>) -> Result<(), String> {
    let problem: Value = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    if answer.status != status || problem["status"] != status {
        return Err(format!("the status is not {status}"));
    }
    if answer.header("content-type") != Some("application/problem+json") {
        return Err(format!("the type is {:?}", answer.header("content-type")));
    }
    if problem["detail"].as_str().is_none_or(|detail| detail.len() < 8) || !problem["title"].is_string() {
        return Err("it says nothing".to_owned());
    }
    match field {
        Some(field) if problem["field"] != field => Err(format!("the field is not {field}")),
        _ => Ok(()),
    }
}

/// The stage of every test here: shop with 3:1, and another service.
fn stage(label: &str) -> Result<(Stage, Client)> {
    let stage = Stage::weights(label, &[3, 1])?;
    stage.put(&Service::new("other", "10.96.0.20:80").frontend("10.96.0.21:53/udp").backend("x", "10.0.0.50:80", 1))?;
    let client = stage.client()?;
    Ok((stage, client))
}

fn shop() -> Service {
    weighted(&[3, 1])
}

/// The document of shop with one place changed.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = shop().json();
    *document.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
    document
}

#[test]
fn addresses() -> Result<()> {
    let (stage, client) = stage("bad-addresses")?;
    let frontend = |what, value: &str, field| Bad::put(what, &with("/spec/frontends/0", json!(value)), field);
    let backend =
        |what, value: &str| Bad::put(what, &with("/spec/backends/1/address", json!(value)), "spec.backends[1].address");
    let (first, second) = ("spec.frontends[0]", "spec.frontends[1]");
    let all = vec![
        frontend("a frontend of another service", "10.96.0.20:80", first),
        frontend("the same, written as a mapped address", "[::ffff:10.96.0.20]:80", first),
        Bad::put("a frontend twice", &shop().frontend(FRONTEND).json(), second),
        frontend("a backend of its own", &backend_address(1), first),
        frontend("a backend of another service", "10.0.0.50:80", first),
        frontend("port 0", "10.96.0.10:0", first),
        frontend("no port", "10.96.0.10", first),
        frontend("a name", "shop.example.com:80", first),
        frontend("an unknown protocol", "10.96.0.10:80/sctp", first),
        frontend("unspecified", "0.0.0.0:80", first),
        frontend("unspecified IPv6", "[::]:80", first),
        frontend("multicast", "224.0.0.1:80", first),
        frontend("port 65536", "10.96.0.10:65536", first),
        frontend("nothing", "", first),
        Bad::put("none at all", &with("/spec/frontends", json!([])), "spec.frontends"),
        Bad::put("no list", &with("/spec/frontends", json!("10.96.0.10:80")), "spec.frontends"),
        backend("a loop to itself", FRONTEND),
        backend("a loop through another service", "10.96.0.20:80"),
        backend("a loop, written as a mapped address", "[::ffff:10.96.0.20]:80"),
        backend("a backend on port 0", "10.0.0.2:0"),
        backend("an unspecified backend", "0.0.0.0:80"),
        backend("a multicast backend", "239.1.1.1:80"),
        backend("IPv6 behind IPv4", "[fd00::2]:80"),
        backend("a name as a backend", "localhost:80"),
    ];
    check(&stage, &client, all)
}

#[test]
fn weights_names_and_unknown_fields() -> Result<()> {
    let (stage, client) = stage("bad-fields")?;
    let weight =
        |what, value: Value| Bad::put(what, &with("/spec/backends/1/weight", value), "spec.backends[1].weight");
    let name =
        |what, value: &str| Bad::put(what, &with("/spec/backends/1/name", json!(value)), "spec.backends[1].name");
    let added = |pointer: &str, key: &str| {
        let mut document = shop().json();
        document.pointer_mut(pointer).unwrap()[key] = json!(1);
        document
    };
    let all = vec![
        weight("a negative weight", json!(-1)),
        weight("a huge weight", json!(1_000_001)),
        weight("a weight beyond all integers", json!(1e30)),
        weight("half a weight", json!(0.5)),
        weight("a weight in words", json!("many")),
        weight("no weight", Value::Null),
        Bad::put("a percentage of 101", &shop().set("minReadyPercent", 101).json(), "spec.minReadyPercent"),
        Bad::put("an unknown balance", &shop().set("balance", "leastConnections").json(), "spec.balance"),
        Bad::put("an unknown choice", &shop().set("onNoBackend", "drop").json(), "spec.onNoBackend"),
        Bad::put("a group of too much weight", &shop().group("g", 2_000_000).json(), "spec.groups[0].weight"),
        name("a name with a slash", "a/b"),
        name("a name of nothing", ""),
        name("a name with a space", "b 2"),
        name("a name in capitals", "B2"),
        name("a name with an umlaut", "bä2"),
        name("a name with a zero byte", "b\u{0}2"),
        name("a name that climbs", "../b2"),
        name("the same name twice", "b1"),
        Bad::put("a node with an odd name", &with("/spec/backends/0/node", json!("n 1")), "spec.backends[0].node"),
        Bad::put("another name than the path's", &with("/metadata/name", json!("other")), "metadata.name"),
        Bad::put("an odd name in the document", &with("/metadata/name", json!("sh op")), "metadata.name"),
        Bad::put("an unknown field", &added("", "extra"), "extra"),
        Bad::put("an unknown field in spec", &added("/spec", "weigth"), "spec.weigth"),
        Bad::put("an unknown field of a backend", &added("/spec/backends/0", "wieght"), "spec.backends[0].wieght"),
        Bad::put("another version", &with("/apiVersion", json!("sluice.dev/v2")), "apiVersion"),
        Bad::put("another kind", &with("/kind", json!("Deployment")), "kind"),
        Bad::put(
            "a group that is none",
            &shop().group("g", 1).backend_in("h", "b3", "10.0.0.3:80", 1).json(),
            "spec.backends[2].group",
        ),
        Bad::patch("a patch with an unknown field", json!({"spec": {"frontend": []}}), "spec.frontend"),
        Bad::patch(
            "a patch that takes a frontend",
            json!({"spec": {"frontends": ["10.96.0.20:80"]}}),
            "spec.frontends[0]",
        ),
        Bad::patch("a patch that renames", json!({"metadata": {"name": "store"}}), "metadata.name"),
        Bad::patch("a patch that removes what must be", json!({"spec": {"backends": null}}), "spec.backends"),
        Bad::patch("a patch that changes the kind", json!({"kind": "Node"}), "kind"),
    ];
    check(&stage, &client, all)
}

#[test]
fn bodies() -> Result<()> {
    let (stage, client) = stage("bad-bodies")?;
    let path = "/v1/services/shop";
    let put = |what, media_type: &str, body: &[u8], status| {
        let request = Request::new().body(media_type, body);
        Bad { what, method: "PUT", path, request, status, field: None }
    };
    let json = "application/json";
    let mut many = Service::new("shop", FRONTEND);
    for number in 0..10_001 {
        many = many.backend(&format!("b{number}"), &format!("10.{}.{}.1:80", 100 + number / 250, number % 250), 1);
    }
    let large = shop().set("balance", "x".repeat(5 << 20)).json().to_string();
    let two = format!("{}\n---\n{}", shop().json(), shop().json());
    let yaml = "application/yaml";
    let all = vec![
        Bad::put("10,001 backends", &many.json(), "spec.backends"),
        Bad::put(
            "65 frontends",
            &(0..64).fold(shop(), |service, n| service.frontend(&format!("10.96.9.{n}:80"))).json(),
            "spec.frontends",
        ),
        put("5 MB", json, large.as_bytes(), 413),
        put("an empty body", json, b"", 422),
        put("no JSON", json, b"{\"kind\": ", 422),
        put("no text", json, b"\xff\xfe\x00", 422),
        put("a list", json, b"[]", 422),
        put("null", json, b"null", 422),
        put("another media type", "text/html", b"<p>shop</p>", 415),
        put("two documents", yaml, two.as_bytes(), 422),
        put("broken YAML", yaml, b"spec: [", 422),
        put("an alias that grows", yaml, BILLION_LAUGHS.as_bytes(), 422),
        put("deep nesting", json, "[".repeat(100_000).as_bytes(), 422),
        Bad::other("half a zero", "POST", "/v1/nodes/n1/zero", Some(serde_json::json!({"forse": true})), 422)
            .at("forse"),
        Bad::other("a zero in words", "POST", "/v1/nodes/n1/zero", Some(serde_json::json!({"force": "yes"})), 422)
            .at("force"),
    ];
    check(&stage, &client, all)
}

const BILLION_LAUGHS: &str = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
    d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n\
    g: &g [*f,*f,*f,*f,*f,*f,*f,*f,*f]\nh: &h [*g,*g,*g,*g,*g,*g,*g,*g,*g]\ni: &i [*h,*h,*h,*h,*h,*h,*h,*h,*h]\n";

#[test]
fn what_does_not_exist() -> Result<()> {
    let (stage, client) = stage("missing")?;
    let weight = || Some(json!({"weight": 5}));
    let all = vec![
        Bad::other("a service", "GET", "/v1/services/none", None, 404),
        Bad::other("a service to delete", "DELETE", "/v1/services/none", None, 404),
        Bad::other("a service to patch", "PATCH", "/v1/services/none", Some(json!({})), 404),
        Bad::other("a backend", "GET", "/v1/services/shop/backends/none", None, 404),
        Bad::other("a weight of no backend", "PATCH", "/v1/services/shop/backends/none", weight(), 404),
        Bad::other("a weight of no service", "PATCH", "/v1/services/none/backends/b1", weight(), 404),
        Bad::other("a node", "GET", "/v1/nodes/none", None, 404),
        Bad::other("a node to zero", "POST", "/v1/nodes/none/zero", Some(json!({})), 404),
        Bad::other("a node to restore", "POST", "/v1/nodes/none/restore", Some(json!({})), 404),
        Bad::other("a backend to zero", "POST", "/v1/services/shop/backends/none/zero", Some(json!({})), 404),
        Bad::other("an operation", "GET", "/v1/operations/none", None, 404),
        Bad::other("a path", "GET", "/v1/nothing", None, 404),
        Bad::other("the root", "POST", "/", None, 404),
        Bad::other("a method", "DELETE", "/v1/services", None, 405),
        Bad::other("a parameter", "GET", "/v1/services?colour=red", None, 400),
        Bad::other("a dry run in words", "DELETE", "/v1/services/shop?dryRun=maybe", None, 400),
        Bad::other("a name that no service can have", "GET", "/v1/services/%2e%2e%2fetc", None, 404),
    ];
    check(&stage, &client, all)
}

#[test]
fn of_two_writers_with_one_etag_one_is_told() -> Result<()> {
    let (stage, client) = stage("etag")?;
    let shown = stage.agent.get("/v1/services/shop")?.expect_status(200);
    let etag = shown.header("etag").expect("an ETag").to_owned();
    let put = |weights: &[u32], tag: &str| {
        let request = Request::json(&weighted(weights).json()).header("if-match", tag);
        stage.agent.request("PUT", "/v1/services/shop", &request)
    };
    // At the same time: exactly one gets through.
    let statuses: Vec<u16> = thread::scope(|scope| {
        let writers: Vec<_> = (1..=8_u32)
            .map(|number| {
                let (put, etag) = (&put, &etag);
                scope.spawn(move || put(&[number, 10], etag).unwrap().status)
            })
            .collect();
        writers.into_iter().map(|writer| writer.join().unwrap()).collect()
    });
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 412).count(), 7, "{statuses:?}");
    let weights = stage.agent.get("/v1/services/shop")?;
    let now = weights.header("etag").unwrap().to_owned();
    assert_ne!(now, etag);
    let problem = put(&[1, 1], &etag)?;
    assert_eq!(is_problem(&problem, 412, None), Ok(()));
    let before = snapshot(&stage)?;
    // The same guard on the other writes, and on making what is there already.
    let stale = Request::new().header("if-match", &etag);
    stage.agent.request("DELETE", "/v1/services/shop", &stale)?.expect_status(412);
    let patch = stale.body("application/merge-patch+json", r#"{"spec": {"balance": "hash"}}"#);
    stage.agent.request("PATCH", "/v1/services/shop", &patch)?.expect_status(412);
    let only_new = Request::json(&shop().json()).header("if-none-match", "*");
    stage.agent.request("PUT", "/v1/services/shop", &only_new)?.expect_status(412);
    assert_eq!(snapshot(&stage)?, before);
    let answer = put(&[3, 1], &now)?.expect_status(200);
    assert_ne!(answer.header("etag"), Some(now.as_str()));
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.75), ("b2", 0.25)]);
    Ok(())
}

#[test]
fn a_refused_document_does_not_come_back_with_a_restart() -> Result<()> {
    let (mut stage, client) = stage("refused-restart")?;
    let before = snapshot(&stage)?;
    stage.agent.put("/v1/services/shop", &with("/spec/backends/0/weight", json!(-1)))?.expect_status(422);
    stage.agent.put("/v1/services/thief", &Service::new("thief", FRONTEND).json())?.expect_status(422);
    stage.agent.kill()?;
    stage.agent.start()?;
    assert_eq!(snapshot(&stage)?, before);
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.75), ("b2", 0.25)]);
    // What is refused is counted.
    stage.agent.put("/v1/services/thief", &Service::new("thief", FRONTEND).json())?.expect_status(422);
    assert_eq!(stage.metric("sluice_config_errors_total", &[])?, 1.0);
    Ok(())
}
