//! A backend that begins to take connections begins with few: its share follows the curve, as real connections count it.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};
use sluice_tests::{Service, system::eventually};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, backend_address, weighted};

/// b1 and b2, warm.
fn warm(label: &str, duration: &str) -> Result<(Stage, Service)> {
    let mut stage = Stage::new(label)?;
    let service = stage.service(&[1, 1])?;
    stage.put(&service)?;
    let service = service.set("warmup", json!({"duration": duration}));
    stage.put(&service)?;
    Ok((stage, service))
}

fn state(stage: &Stage, backend: &str) -> Result<String> {
    Ok(stage.backend("shop", backend)?["state"].as_str().unwrap_or_default().to_owned())
}

fn part(stage: &Stage, backend: &str) -> Result<Option<f64>> {
    Ok(stage.backend("shop", backend)?["warming"]["part"].as_f64())
}

#[test]
fn a_cold_backend_gets_a_share_that_grows_to_the_whole() -> Result<()> {
    let (stage, service) = warm("ramp", "10s")?;
    let client = stage.client()?;
    let _b3 = stage.world.tcp(&backend_address(3), "b3")?;
    stage.put(&service.backend_on("n3", "b3", &backend_address(3), 1))?;
    assert_eq!((state(&stage, "b1")?, state(&stage, "b3")?), ("ready".into(), "warming".into()));
    let (mut last, mut seen) = (0.0, 0);
    let began = Instant::now();
    while let Some(before) = part(&stage, "b3")? {
        assert!(before >= last, "the part fell from {last} to {before}");
        last = before;
        let report = client.spread(FRONTEND, 200);
        assert_all_answered(&report);
        let Some(after) = part(&stage, "b3")? else { break };
        // Within two points of the curve, as it moved meanwhile.
        let share = |part: f64| part / (2.0 + part);
        let counted = report.answered_by("b3") as f64 / 200.0;
        assert!(
            counted >= share(before) - 0.02 && counted <= share(after) + 0.02,
            "{counted} of the connections while the part went from {before} to {after}"
        );
        seen += 1;
        assert!(began.elapsed() < LIMIT * 4, "it is still warming up");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(seen > 2, "it was warm at once");
    eventually("it is ready", LIMIT, || (state(&stage, "b3").ok()? == "ready").then_some(()))?;
    let third = 1.0 / 3.0;
    assert_exact(&client.spread(FRONTEND, 90), 30, &[("b1", third), ("b2", third), ("b3", third)]);
    Ok(())
}

#[test]
fn backends_that_begin_together_are_equal_and_their_group_keeps_its_share() -> Result<()> {
    let mut stage = Stage::new("together")?;
    for number in 1..=4 {
        stage.tcp(&backend_address(number), &format!("b{number}"))?;
    }
    let service = |canary: &str| {
        Service::new("shop", FRONTEND)
            .group("stable", 90)
            .group("canary", 10)
            .backend_in("stable", "b1", &backend_address(1), 100)
            .backend_in("stable", "b2", &backend_address(2), 100)
            .backend_in("canary", canary, &backend_address(3), 100)
    };
    let warmup = json!({"duration": "1h"});
    // All of them are cold.
    stage.put(&service("b3").set("warmup", warmup.clone()))?;
    assert_eq!(state(&stage, "b1")?, "warming");
    let shares = [("b1", 0.45), ("b2", 0.45), ("b3", 0.1)];
    assert_exact(&stage.client()?.spread(FRONTEND, 200), 20, &shares);
    // A cold canary among warm ones has the whole share of its group.
    stage.put(&service("b3"))?;
    stage.put(&service("b4").set("warmup", warmup))?;
    assert_eq!((state(&stage, "b1")?, state(&stage, "b4")?), ("ready".into(), "warming".into()));
    // It is another name for the same server.
    assert_exact(&stage.client()?.spread(FRONTEND, 200), 20, &shares);
    Ok(())
}

#[test]
fn what_comes_back_after_a_zero_is_cold_again() -> Result<()> {
    let (stage, _) = warm("restored", "1h")?;
    let client = stage.client()?;
    stage.zero("node/n2")?;
    let answer = stage.restore("node/n2")?;
    assert_eq!(answer["state"], "ready", "a node has no weight of its own");
    assert_eq!((state(&stage, "b1")?, state(&stage, "b2")?), ("ready".into(), "warming".into()));
    let report = client.spread(FRONTEND, 101);
    assert_all_answered(&report);
    assert_eq!(report.answered_by("b2"), 1, "one part in a hundred and one");
    let described = stage.agent.cli(&["describe", "shop"])?;
    let text = String::from_utf8(described.stdout)?;
    assert!(text.contains("warming up: 1 % of its weight") && text.contains("100 % |"), "{text}");
    Ok(())
}

#[test]
fn a_ramp_goes_on_where_a_killed_agent_left_it() -> Result<()> {
    let (mut stage, service) = warm("ramp-killed", "20s")?;
    let _b3 = stage.world.tcp(&backend_address(3), "b3")?;
    stage.put(&service.backend_on("n3", "b3", &backend_address(3), 1))?;
    let before = eventually("it has come some way", LIMIT, || part(&stage, "b3").ok()?.filter(|part| *part >= 0.1))?;
    stage.agent.kill()?;
    std::thread::sleep(Duration::from_secs(2));
    stage.agent.start()?;
    // Two seconds are a tenth of its time.
    let after = part(&stage, "b3")?.unwrap_or(1.0);
    assert!(after >= before + 0.08, "{before} before, {after} after");
    eventually("it is warm", LIMIT * 2, || (state(&stage, "b3").ok()? == "ready").then_some(()))?;
    Ok(())
}

#[test]
fn a_backend_may_have_a_warm_up_of_its_own() -> Result<()> {
    let mut stage = Stage::new("own-ramp")?;
    let document = stage.service(&[1, 1])?.set("warmup", json!({"duration": "1h"})).json();
    let mut document = document;
    document["spec"]["backends"][1]["warmup"] = json!({"duration": "1h", "minimumPercent": 50});
    stage.agent.put("/v1/services/shop", &document)?.expect_status(201);
    assert_eq!((part(&stage, "b1")?, part(&stage, "b2")?), (Some(0.01), Some(0.5)));
    let view = stage.agent.get("/v1/services/shop/backends/b2")?.json();
    assert_eq!(view["warmup"]["minimumPercent"], 50);
    Ok(())
}

#[test]
fn a_wrong_warm_up_is_refused_by_the_name_of_its_field() -> Result<()> {
    let stage = Stage::new("wrong-ramp")?;
    let document = weighted(&[1]);
    for (warmup, field) in [
        (json!({"duration": "0s"}), "spec.warmup.duration"),
        (json!({"duration": 5}), "spec.warmup.duration"),
        (json!({"exponent": 0.5}), "spec.warmup.exponent"),
        (json!({"minimumPercent": 0}), "spec.warmup.minimumPercent"),
        (json!({"curve": "steep"}), "spec.warmup.curve"),
        (json!({"length": "5s"}), "spec.warmup"),
    ] {
        let body = document.clone().set("warmup", warmup).json();
        let answer = stage.agent.put("/v1/services/shop", &body)?;
        let problem: Value = answer.json();
        assert_eq!(answer.status, 422, "{problem}");
        assert!(problem["field"].as_str().unwrap_or_default().starts_with(field), "{field}: {problem}");
    }
    Ok(())
}
