//! What really happens: shares, connections, explanations, events, metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    http::{Method, Request},
};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sluice_common::{
    opening::Opening,
    records::{CensusRow, ConnectionRecord, Phase},
    tables::{Counters, Endpoint, TCP, UDP},
};
use tower::ServiceExt;

use crate::{
    http::{
        Access, Gate,
        testing::{Agent, samples},
        tokens::TokenFile,
    },
    kernel::{gauges::UNUSED, sockets::Census},
    model::BackendId,
};

#[tokio::test]
async fn shares_are_observed_since_the_table_became_current() {
    let agent = Agent::with_shop().await;
    agent.set(agent.backend_id("shop", "n1"), Counters { picked: 60, opened: 60, established: 50, ..UNUSED });
    agent.set(agent.backend_id("shop", "n2"), Counters { picked: 40, ..UNUSED });
    let status = agent.get("/v1/services/shop").await.2["status"].clone();
    let n1 = &status["backends"][0];
    assert_eq!((&n1["observedShare"], &n1["newConnections"]), (&json!(0.6), &json!(60)));
    assert_eq!(n1["expectedShare"], json!(0.75));
    assert_eq!((&n1["activeConnections"], &n1["connecting"]), (&json!(50), &json!(10)));
    let interval: Vec<f64> = n1["confidence95"].as_array().unwrap().iter().map(|end| end.as_f64().unwrap()).collect();
    assert!((interval[0] - 0.502).abs() < 1e-3 && (interval[1] - 0.691).abs() < 1e-3, "{interval:?}");
    assert_eq!((&status["groups"][0]["name"], &status["groups"][0]["observedShare"]), (&json!("default"), &json!(1.0)));
    assert_eq!((&status["newConnections"], &status["noBackend"]), (&json!(100), &json!(3)));
}

/// Of a connection whose caller spoke first.
fn row(backend: BackendId, to: &str, phase: Phase, protocol: u16, idle: u32) -> CensusRow {
    let frontend = Endpoint::new("10.96.0.10:80".parse().unwrap(), protocol);
    let remote = Endpoint::new(to.parse().unwrap(), protocol);
    let local = Endpoint::new("10.0.0.7:40000".parse().unwrap(), protocol);
    let mut row = CensusRow {
        connection: ConnectionRecord {
            frontend: frontend.address,
            backend: remote.address,
            frontend_port: frontend.port,
            backend_port: remote.port,
            protocol,
            phase: phase as u8,
            notes: 0,
            service_id: 0,
            backend_id: backend.0,
            pid: std::process::id(),
            seen: 0,
            since: 1_000_000_000,
        },
        cookie: 1,
        netns: 5,
        local: local.address,
        remote: remote.address,
        local_port: local.port,
        remote_port: remote.port,
        state: 1,
        now: 10_000,
        last_sent: 10_000 - idle - 1,
        last_received: 10_000 - idle,
        unacknowledged: 0,
        unread: 0,
        last_segment: 20,
        bytes_sent: 10,
        bytes_received: 20,
        clock: 4_500_000_000,
        segments_sent: 1,
        multipath: 0,
        keepalive: 0,
        written: 0,
        acknowledged_late: 0,
        ping_pong: 0,
    };
    row.connection.note_opening(Opening::Caller);
    row
}

#[tokio::test]
async fn connections_are_listed_with_their_process() {
    let agent = Agent::with_shop().await;
    let (status, _, body) = agent.get("/v1/connections").await;
    assert_eq!(status, 500, "a kernel that cannot tell says so: {body}");
    let (n1, n2) = (agent.backend_id("shop", "n1"), agent.backend_id("shop", "n2"));
    let mut busy = CensusRow { last_sent: 9_999, ..row(n1, "10.0.0.1:8080", Phase::Established, TCP, 500) };
    busy.connection.note_opening(Opening::Server);
    let reconnected = CensusRow { remote_port: 1, ..row(n1, "10.0.0.1:8080", Phase::Established, TCP, 0) };
    let flows_only = CensusRow { ..row(n1, "10.0.0.1:8080", Phase::Established, 0, 0) };
    let opening = CensusRow { state: 2, ..row(n2, "10.0.0.2:8080", Phase::Opened, TCP, 0) };
    let mut gone = row(BackendId(200), "10.0.0.9:8080", Phase::Established, TCP, 0);
    gone.connection.note_opening(Opening::Unknown);
    *agent.readings.census.lock().unwrap() = Some(Census {
        rows: vec![
            row(n1, "10.0.0.1:8080", Phase::Established, TCP, 500),
            busy,
            reconnected,
            flows_only,
            opening,
            gone,
            row(n2, "10.0.0.2:8080", Phase::Established, UDP, 0),
            row(n2, "10.0.0.2:8080", Phase::Ended, TCP, 0),
        ],
        hz: 250,
    });
    let (status, _, body) = agent.get("/v1/connections").await;
    assert_eq!((status.as_u16(), &body["total"]), (200, &json!(5)), "{body}");
    let own = std::fs::read_to_string("/proc/self/comm").unwrap();
    let cgroup = crate::host::cgroups::name_of_process(std::process::id());
    assert_eq!(
        body["items"][0],
        json!({
            "service": "shop", "backend": "n1", "node": "node-1", "protocol": "tcp",
            "frontend": "10.96.0.10:80", "backendAddress": "10.0.0.1:8080", "localAddress": "10.0.0.7:40000",
            "state": "established", "pid": std::process::id(), "command": own.trim(), "cgroup": cgroup, "pod": null, "netns": 5,
            "ageSeconds": 3.5, "idleSeconds": 2.0, "inFlight": false, "bytesSent": 10, "bytesReceived": 20,
        })
    );
    assert_eq!((&body["items"][1]["inFlight"], &body["items"][2]["state"]), (&json!(true), &json!("synSent")));
    assert_eq!(body["items"][2]["idleSeconds"], json!(null), "nothing was said that it could be idle since");
    assert_eq!(
        (&body["items"][3]["service"], &body["items"][3]["backendAddress"]),
        (&json!(null), &json!("10.0.0.9:8080"))
    );
    assert_eq!(body["items"][1]["session"], json!("serverFirst"));
    assert_eq!(body["sessions"], json!({"serverFirst": 1, "unknown": 1}));
    assert_eq!((&body["items"][4]["protocol"], &body["items"][4]["inFlight"]), (&json!("udp"), &json!(null)));
    for (query, total) in [
        ("service=shop", 4),
        ("service=none", 0),
        ("backend=n1", 2),
        ("node=node-2", 2),
        ("state=synSent", 1),
        ("service=shop&backend=n2&state=established", 1),
    ] {
        let (_, _, body) = agent.get(&format!("/v1/connections?{query}")).await;
        assert_eq!(body["total"], total, "{query}");
    }
    let (_, _, body) = agent.get("/v1/connections?limit=1").await;
    assert_eq!((body["items"].as_array().unwrap().len(), &body["total"]), (1, &json!(5)));
    // What the service says of itself goes before what is seen.
    for (protocol, expected) in [("request", json!({})), ("stream", json!({"stream": 3}))] {
        agent.patch("/v1/services/shop", &json!({"spec": {"protocol": protocol}})).await;
        let (_, _, body) = agent.get("/v1/connections?service=shop&limit=1").await;
        assert_eq!(body["sessions"], expected, "{protocol}");
    }
}

#[tokio::test]
async fn a_connection_is_explained() {
    let agent = Agent::with_shop().await;
    let (status, _, body) = agent.get("/v1/explain?to=10.96.0.99:80").await;
    assert_eq!((status.as_u16(), &body["verdict"], &body["service"]), (200, &json!("untouched"), &json!(null)));
    agent.post("/v1/nodes/node-1/zero", &json!({"reason": "upgrade"})).await;
    let (_, _, body) = agent.get("/v1/explain?to=10.96.0.10:80").await;
    assert_eq!((&body["verdict"], &body["service"]), (&json!("steered"), &json!("shop")));
    assert_eq!((&body["candidates"][0]["backend"], &body["candidates"][0]["share"]), (&json!("n2"), &json!(1.0)));
    let why = body["out"][0]["why"].as_str().unwrap();
    assert!(why.contains("node-1") && why.contains("upgrade"), "{why}");
    agent.patch("/v1/services/shop/backends/n2", &json!({"weight": 0})).await;
    let (_, _, body) = agent.get("/v1/explain?to=10.96.0.10:80").await;
    assert_eq!((&body["verdict"], &body["out"][1]["why"]), (&json!("refused"), &json!("its weight is 0")));
    agent.patch("/v1/services/shop", &json!({"spec": {"onNoBackend": "pass"}})).await;
    assert_eq!(agent.get("/v1/explain?to=10.96.0.10:80").await.2["verdict"], "passed");
}

#[tokio::test]
async fn with_hash_the_caller_decides() {
    let agent = Agent::with_shop().await;
    agent.patch("/v1/services/shop", &json!({"spec": {"balance": "hash"}})).await;
    *agent.readings.picked.lock().unwrap() = Some(agent.backend_id("shop", "n2"));
    let (_, _, body) = agent.get("/v1/explain?to=10.96.0.10:80").await;
    assert_eq!(body["backend"], json!(null), "nobody said who calls");
    let from = format!("pid:{}", std::process::id());
    let (status, _, body) = agent.get(&format!("/v1/explain?to=10.96.0.10:80&from={from}")).await;
    assert_eq!((status.as_u16(), &body["backend"]), (200, &json!("n2")), "{body}");
    let (_, _, body) = agent.get(&format!("/v1/explain?to=10.96.0.10:80&from={from},10.1.2.3")).await;
    assert_eq!(body["assumed"], json!([]));
}

/// Reads server-sent events until `count` have come.
async fn read_events(body: &mut Body, count: usize) -> Vec<String> {
    let mut text = String::new();
    while text.matches("\n\n").count() < count {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.unwrap().unwrap().unwrap();
        text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
    }
    text.split_terminator("\n\n").map(str::to_owned).collect()
}

async fn follow(agent: &Agent, headers: &[(&str, &str)]) -> Body {
    let mut request = Request::builder().uri("/v1/events");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = agent.router(Access::reads_only()).oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    response.into_body()
}

fn id(event: &str) -> &str {
    event.lines().find_map(|line| line.strip_prefix("id: ")).unwrap()
}

#[tokio::test]
async fn events_come_as_they_happen_and_can_be_resumed() {
    let agent = Agent::with_shop().await;
    let mut live = follow(&agent, &[]).await;
    agent.patch("/v1/services/shop/backends/n1", &json!({"weight": 1})).await;
    agent.patch("/v1/services/shop/backends/n1", &json!({"weight": 2})).await;
    let events = read_events(&mut live, 2).await;
    assert!(events[0].contains("event: serviceChanged"), "only what came after the call: {events:?}");
    let data: Value =
        serde_json::from_str(events[0].lines().find_map(|line| line.strip_prefix("data: ")).unwrap()).unwrap();
    assert_eq!((data["kind"].as_str(), data["id"].to_string().as_str()), (Some("serviceChanged"), id(&events[0])));

    let mut resumed = follow(&agent, &[("last-event-id", id(&events[0]))]).await;
    assert_eq!(read_events(&mut resumed, 1).await[0], events[1]);
    let mut all = follow(&agent, &[("last-event-id", "0")]).await;
    assert_eq!(read_events(&mut all, 3).await.len(), 3, "from the oldest one held");
    let mut old = follow(&agent, &[("last-event-id", "1")]).await;
    assert!(read_events(&mut old, 2).await[0].contains("event: missed"));
    let (status, ..) = agent.send(Method::GET, "/v1/events", &[("last-event-id", "x")], "").await;
    assert_eq!(status, 400);

    let (_, _, held) = agent.get("/v1/events?follow=false").await;
    assert_eq!(held["items"].as_array().unwrap().len(), 3);
    let after = format!("/v1/events?follow=false&after={}", id(&events[0]));
    assert_eq!(agent.get(&after).await.2["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn events_end_when_the_agent_stops() {
    let agent = Agent::with_shop().await;
    let mut live = follow(&agent, &[]).await;
    agent.stop.send_replace(true);
    let end = tokio::time::timeout(Duration::from_secs(10), live.frame()).await.unwrap();
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn events_end_when_their_token_is_taken_away() {
    let agent = Agent::with_shop().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("read");
    std::fs::write(&file, "ann 0123456789abcdef\nbob fedcba9876543210\n").unwrap();
    let gate = Arc::new(Gate { read: Some(TokenFile::open(&file).unwrap()), ..Gate::default() });
    let follow = async |token: &str| {
        let request = Request::builder().uri("/v1/events").header("authorization", format!("Bearer {token}"));
        let router = agent.router(Access::Guarded(gate.clone()));
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        response.into_body()
    };
    let (mut ann, mut bob) = (follow("0123456789abcdef").await, follow("fedcba9876543210").await);
    std::fs::write(&file, "bob fedcba9876543210\n").unwrap();
    let end = tokio::time::timeout(Duration::from_secs(5), ann.frame()).await.unwrap();
    assert!(end.is_none(), "{end:?}");
    agent.patch("/v1/services/shop/backends/n1", &json!({"weight": 1})).await;
    assert!(read_events(&mut bob, 1).await[0].contains("event: serviceChanged"));
}

#[tokio::test]
async fn metrics_have_the_names_of_the_contract() {
    let agent = Agent::with_shop().await;
    let mut n1 = Counters { picked: 60, opened: 60, established: 50, closed: 10, failed: [2, 1, 0, 0], ..UNUSED };
    (n1.connect_time[0], n1.connect_time[15], n1.connect_sum) = (40, 10, 2_000_000);
    (n1.rtt_sum, n1.rtt_samples, n1.resets, n1.retransmits) = (500, 2, 4, 5);
    agent.set(agent.backend_id("shop", "n1"), n1);
    agent.post("/v1/nodes/node-2/zero", &json!({})).await;
    let (status, headers, body) = agent.get("/metrics").await;
    assert_eq!(
        (status.as_u16(), headers["content-type"].to_str().unwrap()),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    let text = body.as_str().unwrap();
    for (name, labels, value) in [
        ("sluice_connections_total", r#"{service="shop",group="default",backend="n1"}"#, 60.0),
        ("sluice_connections", r#"{service="shop",backend="n1",state="active"}"#, 40.0),
        ("sluice_connections", r#"{service="shop",backend="n1",state="connecting"}"#, 7.0),
        ("sluice_connect_failures_total", r#"{service="shop",backend="n1",reason="refused"}"#, 2.0),
        ("sluice_connect_failures_total", r#"{service="shop",backend="",reason="no_backend"}"#, 3.0),
        ("sluice_connect_duration_seconds_bucket", r#"{service="shop",le="0.000064"}"#, 40.0),
        ("sluice_connect_duration_seconds_bucket", r#"{service="shop",le="+Inf"}"#, 50.0),
        ("sluice_connect_duration_seconds_sum", r#"{service="shop"}"#, 2.0),
        ("sluice_resets_total", r#"{service="shop",backend="n1"}"#, 4.0),
        ("sluice_retransmits_total", r#"{service="shop",backend="n1"}"#, 5.0),
        ("sluice_rtt_seconds_sum", r#"{service="shop",backend="n1"}"#, 0.0005),
        ("sluice_backend_weight", r#"{service="shop",backend="n2"}"#, 25.0),
        ("sluice_backend_effective_weight", r#"{service="shop",backend="n2"}"#, 0.0),
        ("sluice_traffic_share_ratio", r#"{service="shop",backend="n1",kind="programmed"}"#, 1.0),
        ("sluice_traffic_share_ratio", r#"{service="shop",backend="n1",kind="observed"}"#, 1.0),
        ("sluice_traffic_share_ratio", r#"{service="shop",backend="n1",kind="expected"}"#, 1.0),
        ("sluice_zero_duration_seconds_count", "", 1.0),
        ("sluice_verdicts_total", r#"{program="connect4",verdict="steered"}"#, 7.0),
        ("sluice_map_entries", r#"{map="backends"}"#, 2.0),
        ("sluice_map_max_entries", r#"{map="backends"}"#, 256.0),
        ("sluice_config_apply_duration_seconds_count", "", 2.0),
    ] {
        assert_eq!(samples(text, name).get(labels), Some(&value), "{name}{labels} in\n{text}");
    }
    assert!(samples(text, "sluice_config_generation")[""] >= 2.0);
    let mut seen = std::collections::BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(seen.insert(line.rsplit_once(' ').unwrap().0), "twice: {line}");
    }
    let types: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let unique: std::collections::BTreeSet<_> = types.iter().map(|line| line.split(' ').next()).collect();
    assert_eq!(types.len(), unique.len(), "each family in one piece");
}

#[tokio::test]
async fn health_readiness_and_the_description_are_served() {
    let agent = Agent::with_shop().await;
    assert_eq!(agent.get("/healthz").await.0, 200);
    assert_eq!(agent.get("/readyz").await.0, 200);
    let (status, _, openapi) = agent.get("/openapi.json").await;
    assert_eq!((status.as_u16(), openapi["openapi"].as_str().unwrap().starts_with("3.1")), (200, true));
    for (path, method) in [
        ("/v1/services/{service}", "put"),
        ("/v1/services/{service}/backends/{backend}", "patch"),
        ("/v1/nodes/{node}/zero", "post"),
        ("/v1/events", "get"),
        ("/v1/monitor", "get"),
        ("/metrics", "get"),
    ] {
        assert!(openapi["paths"][path][method]["responses"].is_object(), "{method} {path}");
    }
    let bodies = |path: &str| openapi["paths"][path]["post"]["requestBody"]["required"].clone();
    assert_eq!((bodies("/v1/nodes/{node}/drain"), bodies("/v1/apply")), (false.into(), true.into()));
    let drain = &openapi["components"]["schemas"]["DrainBody"]["properties"];
    let default = |field: &str| drain[field]["default"].clone();
    assert_eq!((default("deadline"), default("idleClose")), ("60s".into(), "usual".into()));
    assert_eq!((default("onDeadline"), default("closeInbound")), ("keep".into(), "never".into()));
    let phases = &openapi["components"]["schemas"]["Phase"];
    let described = phases["description"].as_str().unwrap();
    for phase in phases["enum"].as_array().unwrap() {
        assert!(described.contains(&format!("`{}`: ", phase.as_str().unwrap())), "{phase} is described");
    }
    let plan = json!({"$ref": "#/components/schemas/DryRun"});
    for (action, schema) in [("zero", "ZeroAnswer"), ("restore", "RestoreAnswer")] {
        let answer = &openapi["paths"][format!("/v1/nodes/{{node}}/{action}")]["post"]["responses"]["200"];
        let wanted = json!({"$ref": format!("#/components/schemas/{schema}")});
        assert_eq!(answer["content"]["application/json"]["schema"], wanted);
        assert_eq!(openapi["components"]["schemas"][schema]["oneOf"][1], plan, "with dryRun");
    }
    let drain = &openapi["paths"]["/v1/services/{service}/backends/{backend}/drain"]["post"]["responses"];
    assert_eq!(drain["200"]["content"]["application/json"]["schema"], plan, "with dryRun");
    let required = openapi["components"]["schemas"]["Operation"]["required"].as_array().unwrap();
    assert!(required.contains(&json!("closedLate")) && required.contains(&json!("closedInbound")), "{required:?}");
    let text = openapi.to_string();
    for reference in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(openapi["components"]["schemas"][name].is_object(), "{name} is described");
    }
}
