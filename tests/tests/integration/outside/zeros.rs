//! What zeroes do to services and nodes; which are refused, end by themselves or are only tried out.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::json;
use sluice_tests::{
    Service,
    system::{eventually, now},
};

use crate::{
    forge,
    stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, path, weighted},
    zero::time,
};

#[test]
fn a_zero_that_leaves_too_little_is_refused_unless_forced() -> Result<()> {
    let stage = Stage::weights("guard", &[70, 30])?;
    let client = stage.client()?;
    let refused = |target: &str| -> Result<()> {
        let problem = stage.agent.post(&path(target, "zero"), &json!({}))?.expect_status(409);
        assert_eq!(problem.header("content-type"), Some("application/problem+json"));
        assert_eq!(problem.json()["services"], json!(["shop"]), "{}", problem.text());
        Ok(())
    };
    stage.put(&weighted(&[70, 30]).set("minReadyPercent", 50))?;
    refused("node/n1")?;
    refused("shop/b1")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.7), ("b2", 0.3)]);
    // Enough is left without the small one.
    stage.zero("shop/b2")?;
    assert_eq!(client.spread(FRONTEND, 50).answered_by("b1"), 50);
    // The last one is guarded whatever the percentage.
    stage.put(&weighted(&[70, 30]))?;
    refused("node/n1")?;
    assert_eq!(client.spread(FRONTEND, 50).answered_by("b1"), 50);
    stage.agent.post("/v1/nodes/n1/zero", &json!({"force": true}))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 50).errors(), [("ECONNREFUSED".to_owned(), 50)].into());
    stage.restore("node/n1")?;
    stage.restore("shop/b2")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.7), ("b2", 0.3)]);
    Ok(())
}

#[test]
fn a_node_that_would_empty_several_services_names_them_all() -> Result<()> {
    let stage = two_services("names")?;
    stage.zero("a/two")?;
    stage.zero("b/two")?;
    let problem = stage.agent.post("/v1/nodes/n1/zero", &json!({}))?.expect_status(409).json();
    assert_eq!(problem["services"], json!(["a", "b"]));
    for name in ["a", "b"] {
        assert!(problem["detail"].as_str().unwrap().contains(name), "{problem}");
    }
    Ok(())
}

#[test]
fn a_zero_expires() -> Result<()> {
    let stage = Stage::weights("expires", &[1, 1])?;
    let client = stage.client()?;
    let answer = stage.agent.post("/v1/nodes/n1/zero", &json!({"expires": "3s"}))?.expect_status(200).json();
    let lasts = time(&answer["expiresAt"]).duration_since(time(&answer["zeroedAt"]));
    assert!((2500..=3500).contains(&lasts.as_millis()), "{answer}");
    let report = client.spread(FRONTEND, 20);
    // On a machine so slow that it is over already, this says nothing.
    assert!(report.answered_by("b1") == 0 || Timestamp::now() > time(&answer["expiresAt"]), "{:?}", report.by_server());
    eventually("the zero ends", LIMIT, || {
        (stage.agent.get("/v1/nodes/n1").ok()?.json()["status"]["state"] == "ready").then_some(())
    })?;
    assert!(Timestamp::now() >= time(&answer["expiresAt"]), "not before its time");
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    for wrong in ["soon", "-5m", "0s", ""] {
        let problem = stage.agent.post("/v1/nodes/n1/zero", &json!({"expires": wrong}))?.expect_status(422).json();
        assert_eq!(problem["field"], "expires", "{wrong:?}");
    }
    Ok(())
}

#[test]
fn dry_run_says_what_it_would_do_and_does_nothing() -> Result<()> {
    let stage = Stage::weights("dry", &[1, 1])?;
    let client = stage.client()?;
    let answer = stage.agent.post("/v1/nodes/n1/zero?dryRun=true", &json!({}))?.expect_status(200).json();
    assert!(!answer["plan"].as_array().unwrap().is_empty(), "{answer}");
    stage.agent.delete("/v1/services/shop?dryRun=true")?.expect_status(200);
    let path = "/v1/services/shop?dryRun=true";
    stage.agent.put(path, &weighted(&[1, 0]).json())?.expect_status(200);
    stage.agent.patch(path, &json!({"spec": {"frontends": ["10.96.0.99:80"]}}))?.expect_status(200);
    stage.agent.patch("/v1/services/shop/backends/b1?dryRun=true", &json!({"weight": 9}))?.expect_status(200);
    // It finds the same faults as the write itself.
    stage.agent.put(path, &weighted(&[2_000_000, 0]).json())?.expect_status(422);
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    assert_eq!(stage.agent.get("/v1/services/shop")?.json()["status"]["generation"], 1);
    Ok(())
}

/// Two services with a backend on each of two nodes.
pub fn two_services(label: &str) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    for (name, address) in [("a1", "10.0.0.1:81"), ("a2", "10.0.0.2:81"), ("b1", "10.0.0.1:82"), ("b2", "10.0.0.2:82")]
    {
        stage.tcp(address, name)?;
    }
    let a = Service::new("a", "10.96.0.1:80");
    stage.put(&a.backend_on("n1", "one", "10.0.0.1:81", 30).backend_on("n2", "two", "10.0.0.2:81", 70))?;
    let b = Service::new("b", "10.96.0.2:80");
    stage.put(&b.backend_on("n1", "one", "10.0.0.1:82", 50).backend_on("n2", "two", "10.0.0.2:82", 50))?;
    Ok(stage)
}

#[test]
fn a_node_is_zeroed_for_every_service_and_restored_with_its_weights() -> Result<()> {
    let stage = two_services("node")?;
    let client = stage.client()?;
    stage.zero("node/n1")?;
    assert_eq!(client.spread("10.96.0.1:80", 100).by_server(), [("a2".to_owned(), 100)].into());
    assert_eq!(client.spread("10.96.0.2:80", 100).by_server(), [("b2".to_owned(), 100)].into());
    // It stays reachable at its own address, for those who want to look at it.
    assert_eq!(client.connect("10.0.0.1:81")?.line()?, "a1");
    let node = stage.agent.get("/v1/nodes/n1")?.expect_status(200).json();
    assert_eq!(node["status"]["state"], "zero");
    assert_eq!(stage.backend("a", "one")?["state"], "zero");
    // The document keeps the weight, nobody has to remember it.
    let document = stage.agent.get("/v1/services/a")?.json();
    assert_eq!(document["spec"]["backends"][0]["weight"], 30);
    assert_eq!(stage.backend("a", "one")?["effectiveWeight"], 0);
    let answer = stage.restore("node/n1")?;
    assert_eq!(answer["state"], "ready", "{answer}");
    assert_exact(&client.spread("10.96.0.1:80", 200), 100, &[("a1", 0.3), ("a2", 0.7)]);
    assert_exact(&client.spread("10.96.0.2:80", 200), 100, &[("b1", 0.5), ("b2", 0.5)]);
    Ok(())
}

#[test]
fn a_backend_is_zeroed_for_its_service_alone() -> Result<()> {
    let stage = two_services("backend")?;
    let client = stage.client()?;
    stage.zero("a/one")?;
    assert_eq!(client.spread("10.96.0.1:80", 100).answered_by("a2"), 100);
    assert_exact(&client.spread("10.96.0.2:80", 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    // Both at once, and one given back: the other still holds.
    stage.zero("node/n1")?;
    let answer = stage.restore("a/one")?;
    assert_eq!(answer["state"], "zero", "its node is zeroed: {answer}");
    assert_eq!(client.spread("10.96.0.1:80", 50).answered_by("a2"), 50);
    stage.restore("node/n1")?;
    assert_exact(&client.spread("10.96.0.1:80", 200), 100, &[("a1", 0.3), ("a2", 0.7)]);
    Ok(())
}

#[test]
fn existing_connections_are_untouched() -> Result<()> {
    let stage = Stage::weights("existing", &[1, 1])?;
    let client = stage.client()?;
    let mut kept = Vec::new();
    for _ in 0..10 {
        let connection = client.connect(FRONTEND)?;
        kept.push((connection.line()?, connection));
    }
    let answer = stage.zero("node/n1")?;
    assert_eq!(answer["activeConnections"], 5, "{answer}");
    for (server, connection) in &kept {
        assert_eq!(connection.exchange("hello")?, format!("{server}: hello"));
        assert_eq!(connection.peer()?, FRONTEND.parse()?);
    }
    kept.clear();
    stage.count_is("shop", "b1", "activeConnections", 0)
}

#[test]
fn the_proof_is_counted_and_not_assumed() -> Result<()> {
    let stage = Stage::weights("counted", &[1, 1])?;
    let client = stage.client()?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    stage.zero("shop/b1")?;
    assert_eq!(stage.count("shop", "b1", "newConnectionsSinceZero")?, 0);
    // As if the kernel had let three through.
    let moment = u64::try_from(now().as_nanos())?;
    forge::counters(&stage.agent, "10.0.0.1:8080", |counters| {
        counters.picked += 3;
        counters.last_pick = moment;
    })?;
    assert_eq!(stage.count("shop", "b1", "newConnectionsSinceZero")?, 3);
    let answer = stage.zero("shop/b1")?;
    assert_eq!(answer["newConnectionsSinceZero"], 3, "{answer}");
    assert!(time(&answer["lastNewConnectionAt"]) >= time(&answer["zeroedAt"]), "{answer}");
    Ok(())
}

#[test]
fn a_zero_outlives_changes_of_the_document() -> Result<()> {
    let mut stage = Stage::weights("outlives", &[50, 50])?;
    stage.tcp("10.0.0.9:80", "new")?;
    let client = stage.client()?;
    stage.zero("shop/b1")?;
    stage.put(&weighted(&[80, 20]))?;
    stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 60}))?.expect_status(200);
    stage.agent.patch("/v1/services/shop", &json!({"spec": {"balance": "random"}}))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 100).answered_by("b2"), 100);
    // It is the new weight that comes back.
    stage.put(&weighted(&[60, 20]))?;
    stage.restore("shop/b1")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.75), ("b2", 0.25)]);
    // A zeroed node holds for services that come later, and for a node that had lost its last backend.
    stage.zero("node/n1")?;
    stage.put(&weighted(&[0]).backend_on("n2", "b2", "10.0.0.2:8080", 1))?;
    stage.agent.delete("/v1/services/shop")?.expect_status(204);
    let late = Service::new("late", FRONTEND).backend_on("n1", "new", "10.0.0.9:80", 99);
    stage.put(&late.backend_on("n2", "b2", "10.0.0.2:8080", 1))?;
    assert_eq!(client.spread(FRONTEND, 100).answered_by("b2"), 100);
    stage.restore("node/n1")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("new", 0.99), ("b2", 0.01)]);
    Ok(())
}
