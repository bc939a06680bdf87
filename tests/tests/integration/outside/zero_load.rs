//! Zeros under load by every kind of choice, for many services and by several operators.

use std::fs;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{
    Load, Report, World,
    system::{now, rounds},
};

use crate::{
    stage::{FRONTEND, Stage, assert_all_answered, path, weighted},
    zero_load::{check, more, pause},
};

#[test]
fn no_connection_begins_on_a_zeroed_backend_chosen_at_random() -> Result<()> {
    check("load-random", "random", "shop/b1")
}

#[test]
fn affinity_keeps_nobody_on_a_zeroed_node() -> Result<()> {
    check("load-hash", "hash", "node/n1")
}

#[test]
fn a_weight_of_zero_is_as_sharp() -> Result<()> {
    let stage = Stage::weights("load-weight", &[50, 50])?;
    let clients = [stage.client()?, stage.client()?];
    let loads: Vec<_> =
        clients.iter().map(|client| client.begin(&Load::connects(FRONTEND).threads(4).pause(pause()))).collect();
    let mut moments = Vec::new();
    for _ in 0..rounds(5) {
        more(&loads)?;
        stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 0}))?.expect_status(200);
        let from = now();
        more(&loads)?;
        moments.push((from, now()));
        stage.agent.patch("/v1/services/shop/backends/b1", &json!({"weight": 50}))?.expect_status(200);
    }
    for load in loads {
        let report = load.stop();
        assert_all_answered(&report);
        for (from, to) in &moments {
            let between = |micros: u64| (from.as_micros()..to.as_micros()).contains(&u128::from(micros));
            let late = report
                .attempts
                .iter()
                .find(|attempt| between(attempt.start_micros) && attempt.server.as_deref() == Some("b1"));
            assert!(late.is_none(), "{late:?}");
        }
    }
    Ok(())
}

#[test]
fn a_node_is_zeroed_for_many_services_at_once() -> Result<()> {
    const SERVICES: usize = 300;
    let world = World::new("many")?;
    let (_one, _two) = (world.tcp("10.0.0.1:8080", "one")?, world.tcp("10.0.0.2:8080", "two")?);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("services.yaml");
    let frontend = |number: usize| format!("10.97.{}.{}:80", number / 250, number % 250 + 1);
    let documents: Vec<String> = (0..SERVICES)
        .map(|number| {
            let service = sluice_tests::Service::new(&format!("s{number}"), &frontend(number));
            let service = service.backend_on("n1", "one", "10.0.0.1:8080", 1);
            service.backend_on("n2", "two", "10.0.0.2:8080", 1).json().to_string()
        })
        .collect();
    fs::write(&file, documents.join("\n---\n"))?;
    let agent = world.agent_with(&file)?;
    let client = world.client()?;
    let dial =
        |count: u64| -> Vec<Report> { (0..SERVICES).map(|number| client.spread(&frontend(number), count)).collect() };
    for report in dial(2) {
        assert_eq!((report.answered_by("one"), report.answered_by("two")), (1, 1));
    }
    agent.post(&path("node/n1", "zero"), &json!({}))?.expect_status(200);
    for (number, report) in dial(2).iter().enumerate() {
        assert_eq!(report.answered_by("two"), 2, "service {number}: {:?}", report.by_server());
    }
    let node = agent.get("/v1/nodes/n1")?.json();
    assert_eq!(
        (&node["status"]["services"], &node["status"]["newConnectionsSinceZero"]),
        (&json!(SERVICES), &json!(0))
    );
    agent.post(&path("node/n1", "restore"), &json!({}))?.expect_status(200);
    for report in dial(2) {
        assert_eq!((report.answered_by("one"), report.answered_by("two")), (1, 1));
    }
    Ok(())
}

#[test]
fn several_operators_at_once() -> Result<()> {
    let stage = Stage::weights("operators", &[1, 1, 1, 1])?;
    let client = stage.client()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(4).pause(pause()));
    std::thread::scope(|scope| {
        for number in 1..=3 {
            let stage = &stage;
            scope.spawn(move || {
                for _ in 0..rounds(15) {
                    let target = format!("node/n{number}");
                    stage.zero(&target).unwrap();
                    stage.restore(&target).unwrap();
                    let path = format!("/v1/services/shop/backends/b{number}");
                    stage.agent.patch(&path, &json!({"weight": number})).unwrap().expect_status(200);
                }
            });
        }
    });
    assert_all_answered(&load.stop());
    // What is left is what was asked for last.
    stage.put(&weighted(&[1, 2, 3, 4]))?;
    let shares = [("b1", 0.1), ("b2", 0.2), ("b3", 0.3), ("b4", 0.4)];
    crate::stage::assert_exact(&client.spread(FRONTEND, 200), 100, &shares);
    Ok(())
}
