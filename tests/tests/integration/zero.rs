//! Zero: not one new connection, existing ones untouched, the weight kept for later.

use std::time::Instant;

use anyhow::Result;
use jiff::Timestamp;
use serde_json::{Value, json};
use sluice_tests::{Service, system::now};

use crate::{
    forge,
    stage::{FRONTEND, Stage, assert_all_answered, assert_exact, weighted},
};

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
fn the_answer_carries_the_proof() -> Result<()> {
    let stage = Stage::weights("proof", &[1, 1])?;
    let client = stage.client()?;
    let before = Timestamp::now();
    assert_all_answered(&client.spread(FRONTEND, 10));
    let started = Instant::now();
    let request = json!({"reason": "disk is failing", "owner": "ops"});
    let answer = stage.agent.post("/v1/nodes/n1/zero", &request)?.expect_status(200).json();
    let took = u64::try_from(started.elapsed().as_micros())?;
    let after = Timestamp::now();
    println!("{answer}");
    assert_eq!((&answer["owner"], &answer["reason"]), (&json!("ops"), &json!("disk is failing")));
    let programmed = answer["programmedInMicroseconds"].as_u64().unwrap();
    assert!(programmed > 0 && programmed <= took, "{programmed} of {took}");
    assert_eq!((&answer["newConnectionsSinceZero"], &answer["activeConnections"]), (&json!(0), &json!(0)));
    let [zeroed, last] = ["zeroedAt", "lastNewConnectionAt"].map(|field| time(&answer[field]));
    assert!(before <= last && last <= zeroed && zeroed <= after, "{before} {last} {zeroed} {after}");
    // Asked again, it is the same zero.
    assert_all_answered(&client.spread(FRONTEND, 50));
    let again = stage.zero("node/n1")?;
    assert_eq!(again["zeroedAt"], answer["zeroedAt"]);
    assert_eq!((&again["newConnectionsSinceZero"], &again["reason"]), (&json!(0), &answer["reason"]));
    // The kernel's clock is brought to wall-clock time anew for each answer.
    let apart = time(&again["lastNewConnectionAt"]).duration_since(last).abs();
    assert!(apart.as_millis() < 10, "{again} and {answer}");
    Ok(())
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

/// A time of RFC 3339.
pub fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{value} is no time"))
}
