//! Zero and restore, with proof, guards and operations.

use axum::http::Method;
use jiff::Timestamp;
use serde_json::json;
use sluice_common::tables::Counters;

use crate::{
    host::clock,
    http::testing::{Agent, shop},
    kernel::gauges::UNUSED,
};

fn used(picked: u64, last_pick: u64) -> Counters {
    Counters { picked, last_pick, opened: 10, established: 8, closed: 3, failed: [1, 0, 0, 0], ..UNUSED }
}

#[tokio::test]
async fn a_zeroed_node_carries_its_proof() {
    let agent = Agent::with_shop().await;
    let n1 = agent.backend_id("shop", "n1");
    let before = clock::monotonic_ns();
    agent.set(n1, used(40, before));
    let (status, _, proof) =
        agent.post("/v1/nodes/node-1/zero", &json!({"reason": "upgrade", "owner": "ann", "expires": "15m"})).await;
    assert_eq!(status, 200, "{proof}");
    assert_eq!((&proof["target"], &proof["state"]), (&json!("node/node-1"), &json!("zero")));
    assert_eq!((&proof["owner"], &proof["reason"]), (&json!("ann"), &json!("upgrade")));
    assert_eq!((&proof["activeConnections"], &proof["newConnectionsSinceZero"]), (&json!(5), &json!(0)));
    assert!(proof["programmedInMicroseconds"].as_u64().unwrap() < 60_000_000);
    let time = |field: &str| proof[field].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(time("lastNewConnectionAt") <= time("zeroedAt"));
    let left = time("expiresAt").duration_since(time("zeroedAt")).as_secs();
    assert!((890..=900).contains(&left), "{left}");

    // Counted after the zero, but begun before: not a new connection.
    agent.set(n1, used(41, before));
    let node = agent.get("/v1/nodes/node-1").await.2;
    assert_eq!((&node["status"]["state"], &node["status"]["newConnectionsSinceZero"]), (&json!("zero"), &json!(0)));
    assert_eq!(node["status"]["zeroedAt"], proof["zeroedAt"]);
    assert_eq!(node["status"]["programmedInMicroseconds"], proof["programmedInMicroseconds"]);
    let backend = agent.get("/v1/services/shop/backends/n1").await.2;
    assert_eq!((&backend["weight"], &backend["status"]["effectiveWeight"]), (&json!(75), &json!(0)));
    assert_eq!((&backend["status"]["state"], &backend["status"]["zeroed"]), (&json!("zero"), &json!("node/node-1")));
    assert_eq!(backend["status"]["newConnectionsSinceZero"], 0);

    // One that got through would be seen.
    agent.set(n1, used(43, clock::monotonic_ns()));
    assert_eq!(agent.get("/v1/nodes/node-1").await.2["status"]["newConnectionsSinceZero"], 3);
    assert_eq!(agent.get("/v1/services/shop/backends/n1").await.2["status"]["newConnectionsSinceZero"], 3);

    // Again: the same zero, the same proof.
    let (status, _, again) = agent.post("/v1/nodes/node-1/zero", &json!({"reason": "upgrade", "owner": "ann"})).await;
    assert_eq!((status.as_u16(), &again["state"]), (200, &json!("zero")));

    let (status, _, restored) = agent.post("/v1/nodes/node-1/restore", &json!({})).await;
    assert_eq!((status.as_u16(), &restored["state"]), (200, &json!("ready")), "{restored}");
    let backend = agent.get("/v1/services/shop/backends/n1").await.2;
    assert_eq!((&backend["status"]["effectiveWeight"], &backend["status"]["zeroedAt"]), (&json!(75), &json!(null)));
    let (status, ..) = agent.post("/v1/nodes/node-1/restore", &json!({})).await;
    assert_eq!(status, 200, "it may be repeated");
}

#[tokio::test]
async fn a_backend_is_zeroed_by_itself() {
    let agent = Agent::with_shop().await;
    let (status, _, body) = agent.send(Method::POST, "/v1/services/shop/backends/n1/zero", &[], "").await;
    assert_eq!((status.as_u16(), &body["zeroed"], &body["owner"]), (200, &json!("shop/n1"), &json!("api")), "{body}");
    assert_eq!(agent.get("/v1/nodes/node-1").await.2["status"]["state"], "ready");
    let (_, _, body) = agent.send(Method::POST, "/v1/services/shop/backends/n1/restore", &[], "").await;
    assert_eq!(body["state"], "ready");
}

#[tokio::test]
async fn the_last_capacity_is_guarded() {
    let agent = Agent::with_shop().await;
    agent.post("/v1/nodes/node-1/zero", &json!({})).await;
    let (status, _, body) = agent.post("/v1/nodes/node-2/zero", &json!({})).await;
    assert_eq!((status.as_u16(), &body["services"]), (409, &json!(["shop"])), "{body}");
    let (status, _, body) = agent.post("/v1/nodes/node-2/drain", &json!({})).await;
    let detail = body["detail"].as_str().unwrap();
    assert!(
        status == 409 && detail.starts_with("draining node/node-2 would leave shop (nothing open) without"),
        "{detail}"
    );
    assert_eq!(agent.get("/v1/nodes/node-2").await.2["status"]["state"], "ready");
    let (status, ..) = agent.post("/v1/nodes/node-2/zero", &json!({"force": true})).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn what_makes_no_sense_is_named() {
    let agent = Agent::with_shop().await;
    for (path, body, status, field) in [
        ("/v1/nodes/none/zero", json!({}), 404, ""),
        ("/v1/nodes/none/restore", json!({}), 404, ""),
        ("/v1/services/shop/backends/none/zero", json!({}), 404, ""),
        ("/v1/services/none/backends/n1/restore", json!({}), 404, ""),
        ("/v1/nodes/node-1/zero", json!({"resaon": "x"}), 422, "resaon"),
        ("/v1/nodes/node-1/zero", json!({"force": "yes"}), 422, "force"),
        ("/v1/nodes/node-1/zero", json!({"expires": "soon"}), 422, "expires"),
        ("/v1/nodes/node-1/zero", json!({"expires": "-5m"}), 422, "expires"),
        ("/v1/nodes/node-1/zero", json!({"reason": "x".repeat(5000)}), 422, "reason"),
        ("/v1/nodes/node-1/zero", json!([1]), 422, ""),
        ("/v1/nodes/node-1/restore", json!({"to": 5}), 422, "to"),
        ("/v1/nodes/none/drain", json!({}), 404, ""),
        ("/v1/nodes/node-1/drain", json!({"deadline": "-1s"}), 422, "deadline"),
        ("/v1/nodes/node-1/drain", json!({"idleClose": "5"}), 422, "idleClose"),
        ("/v1/nodes/node-1/drain", json!({"idleClose": "never", "closeInbound": "idle"}), 422, "closeInbound"),
        ("/v1/nodes/node-1/drain", json!({"expires": "9999999999999s"}), 422, "expires"),
    ] {
        let (found, _, answer) = agent.post(path, &body).await;
        assert_eq!(
            (found.as_u16(), answer["field"].as_str().unwrap_or("")),
            (status, field),
            "{path} {body}: {answer}"
        );
    }
    for (body, advice) in [
        (json!({"deadline": 60}), "deadline: 60: write a time from now such as \"60s\", at most 7 days (\"168h\")"),
        (json!({"deadline": "169h"}), "deadline: \"169h\": write a time"),
        (json!({"idleClose": 5}), "idleClose: 5: write a time from 100ms to 1h, \"usual\" or \"never\""),
        (json!({"idleClose": {"after": "2s"}}), "\"usual\" or \"never\""),
        (json!({"onDeadline": 5}), "onDeadline: 5: write \"keep\" or \"close\""),
        (json!({"closeInbound": true}), "closeInbound: true: write \"never\" or \"idle\""),
        (json!({"expires": 900}), "expires: 900: write a time from now such as \"15m\""),
    ] {
        let (status, _, answer) = agent.post("/v1/nodes/node-1/drain", &body).await;
        let detail = answer["detail"].as_str().unwrap();
        assert!(status == 422 && detail.contains(advice), "{body}: {detail}");
    }
    assert_eq!(agent.get("/v1/nodes/node-1").await.2["status"]["state"], "ready");
}

#[tokio::test]
async fn a_repeated_drain_may_not_contradict_itself_either() {
    let agent = Agent::with_shop().await;
    let drain = async |body| agent.post("/v1/nodes/node-1/drain", &body).await.0.as_u16();
    assert_eq!(drain(json!({"idleClose": "never"})).await, 202);
    assert_eq!(drain(json!({"closeInbound": "idle"})).await, 422);
    assert_eq!(drain(json!({"idleClose": "usual", "closeInbound": "idle"})).await, 202);
    assert_eq!(drain(json!({"idleClose": null})).await, 422);
    assert_eq!(drain(json!({})).await, 202);
}

#[tokio::test]
async fn operations_are_kept() {
    let agent = Agent::with_shop().await;
    agent.put("/v1/services/shop", &shop()).await;
    let (_, _, zero) = agent.post("/v1/nodes/node-1/zero", &json!({})).await;
    let (_, _, restore) = agent.post("/v1/nodes/node-1/restore", &json!({})).await;
    let (_, _, list) = agent.get("/v1/operations").await;
    let ids: Vec<_> = list["items"].as_array().unwrap().iter().map(|item| &item["id"]).collect();
    assert_eq!(ids, [&zero["operation"], &restore["operation"]]);
    let path = format!("/v1/operations/{}", zero["operation"].as_str().unwrap());
    let (status, _, operation) = agent.get(&format!("{path}?wait=zeroed&timeout=30s")).await;
    assert_eq!((status.as_u16(), &operation["kind"], &operation["phase"]), (200, &json!("zero"), &json!("zeroed")));
    assert_eq!((&operation["target"], &operation["remaining"]["total"]), (&json!("node/node-1"), &json!(0)));
    for (path, status) in [
        ("/v1/operations/none".to_owned(), 404),
        (format!("{path}?wait=gone"), 400),
        (format!("{path}?wait=zeroed&timeout=x"), 400),
    ] {
        assert_eq!(agent.get(&path).await.0, status, "{path}");
    }
}
