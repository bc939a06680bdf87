//! Groups share the connections by their weights, and each shares its part among its own backends.

use anyhow::Result;
use serde_json::json;
use sluice_tests::{Service, http::Request};

use crate::stage::{FRONTEND, Stage, assert_exact};

/// Three stable backends and two canaries.
fn stage(label: &str) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    for number in 1..=5 {
        stage.tcp(&format!("10.0.0.{number}:8080"), &format!("b{number}"))?;
    }
    Ok(stage)
}

fn service(stable: u32, canary: u32) -> Service {
    Service::new("shop", FRONTEND)
        .group("stable", stable)
        .group("canary", canary)
        .backend_in("stable", "b1", "10.0.0.1:8080", 100)
        .backend_in("stable", "b2", "10.0.0.2:8080", 100)
        .backend_in("stable", "b3", "10.0.0.3:8080", 200)
        .backend_in("canary", "b4", "10.0.0.4:8080", 7)
        .backend_in("canary", "b5", "10.0.0.5:8080", 7)
}

#[test]
fn a_canary_keeps_its_part_whatever_the_number_of_backends() -> Result<()> {
    let stage = stage("groups")?;
    let client = stage.client()?;
    stage.put(&service(95, 5))?;
    let shares = [("b1", 0.2375), ("b2", 0.2375), ("b3", 0.475), ("b4", 0.025), ("b5", 0.025)];
    assert_exact(&client.spread(FRONTEND, 400), 100, &shares);
    // Ten per cent, then half, by the group's weight alone.
    stage.put(&service(90, 10))?;
    let shares = [("b1", 0.225), ("b2", 0.225), ("b3", 0.45), ("b4", 0.05), ("b5", 0.05)];
    assert_exact(&client.spread(FRONTEND, 400), 100, &shares);
    // A weight inside a group moves nothing between groups.
    stage.agent.patch("/v1/services/shop/backends/b4", &json!({"weight": 21}))?.expect_status(200);
    let shares = [("b1", 0.225), ("b2", 0.225), ("b3", 0.45), ("b4", 0.075), ("b5", 0.025)];
    assert_exact(&client.spread(FRONTEND, 400), 100, &shares);
    Ok(())
}

#[test]
fn a_group_of_weight_zero_takes_nothing() -> Result<()> {
    let stage = stage("group-zero")?;
    let client = stage.client()?;
    stage.put(&service(100, 0))?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.25), ("b2", 0.25), ("b3", 0.5)]);
    // Not even when nobody else is left.
    let closed = service(100, 0).json();
    let mut backends = closed["spec"]["backends"].clone();
    for index in 0..3 {
        backends[index]["weight"] = json!(0);
    }
    stage.agent.patch("/v1/services/shop", &json!({"spec": {"backends": backends}}))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 10).errors(), [("ECONNREFUSED".to_owned(), 10)].into());
    Ok(())
}

#[test]
fn an_empty_group_spills_to_the_others_and_says_so() -> Result<()> {
    let stage = stage("spill")?;
    let client = stage.client()?;
    stage.put(&service(95, 5).group("empty", 100))?;
    let shares = [("b1", 0.2375), ("b2", 0.2375), ("b3", 0.475), ("b4", 0.025), ("b5", 0.025)];
    assert_exact(&client.spread(FRONTEND, 400), 100, &shares);
    let spilled = |name: &str| -> Result<serde_json::Value> {
        let status = stage.status("shop")?;
        let groups = status["groups"].as_array().unwrap();
        Ok(groups.iter().find(|group| group["name"] == name).unwrap()["spilled"].clone())
    };
    assert_eq!((spilled("empty")?, spilled("stable")?, spilled("canary")?), (json!(true), json!(false), json!(false)));
    // A group whose backends are all zeroed is as empty.
    stage.zero("shop/b4")?;
    stage.zero("shop/b5")?;
    assert_exact(&client.spread(FRONTEND, 200), 100, &[("b1", 0.25), ("b2", 0.25), ("b3", 0.5)]);
    assert_eq!(spilled("canary")?, true);
    stage.restore("shop/b4")?;
    assert_exact(&client.spread(FRONTEND, 400), 100, &[("b1", 0.2375), ("b2", 0.2375), ("b3", 0.475), ("b4", 0.05)]);
    assert_eq!(spilled("canary")?, false);
    Ok(())
}

#[test]
fn a_file_may_hold_the_document_of_the_contract() -> Result<()> {
    let world = sluice_tests::World::new("contract")?;
    let (_one, _two) = (world.tcp("10.0.0.1:8080", "n1")?, world.tcp("10.0.0.2:8080", "n2")?);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("shop.yaml");
    std::fs::write(&file, CONTRACT)?;
    let agent = world.agent_with(&file)?;
    let client = world.client()?;
    for frontend in ["10.96.0.10:80", "10.96.0.11:8080"] {
        assert_exact(&client.spread(frontend, 200), 100, &[("n1", 0.95), ("n2", 0.05)]);
    }
    // What was asked for is what is shown, and can be put again as it is.
    let shown = agent.get("/v1/services/shop")?.expect_status(200).json();
    assert_eq!(shown["metadata"], json!({"name": "shop", "labels": {"team": "web"}}));
    assert_eq!(shown["spec"]["backends"][0]["weight"], 100);
    assert_eq!(shown["spec"]["minReadyPercent"], 0);
    let mut again = shown.clone();
    again.as_object_mut().unwrap().remove("status");
    agent.request("PUT", "/v1/services/shop", &Request::json(&again))?.expect_status(200);
    let nodes = agent.get("/v1/nodes")?.expect_status(200).json();
    let names: Vec<_> = nodes["items"].as_array().unwrap().iter().map(|node| &node["metadata"]["name"]).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3"]);
    Ok(())
}

/// The example of the documentation, without its IPv6 and UDP frontends, whose backends would have to be IPv6.
const CONTRACT: &str = r#"
apiVersion: sluice.dev/v1
kind: SteeredService
metadata: {name: shop, labels: {team: web}}
spec:
  frontends: ["10.96.0.10:80", "10.96.0.11:8080"]   # protocol: tcp when not said
  balance: spread              # spread | random | hash
  onNoBackend: refuse
  minReadyPercent: 0
  groups:
  - {name: stable, weight: 95}
  - {name: canary, weight: 5}
  backends:
  - {name: n1, address: "10.0.0.1:8080", node: node-1, group: stable, weight: 100}
  - {name: n2, address: "10.0.0.2:8080", node: node-2, group: canary}
---
apiVersion: sluice.dev/v1
kind: Node
metadata: {name: node-3}
"#;
