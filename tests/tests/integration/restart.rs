//! The data plane outlives the agent: killed, stopped or started anew, not one connection goes astray, and no zero is
//! forgotten.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use sluice_tests::{
    Agent, Cgroup, Client, Load, Report, World,
    client::Running,
    pins,
    system::{now, pace, rounds},
};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, weighted};

/// Each client's pause between connections: the agent needs some of the processor too.
pub fn pause() -> Duration {
    pace(Duration::from_millis(3))
}

pub fn more(loads: &[Running<'_>]) -> Result<()> {
    let goals: Vec<u64> = loads.iter().map(|load| load.attempts() + 20).collect();
    loads.iter().zip(goals).try_for_each(|(load, goal)| load.reached(goal, LIMIT))
}

/// The id of each pinned link with that of its program.
fn links(agent: &Agent) -> Result<Vec<(String, u32, u32)>> {
    let names = pins::names(agent.bpffs()).into_iter().filter(|name| name.starts_with("links/"));
    names
        .map(|name| {
            let (link, program) = pins::link(&agent.bpffs().join(&name))?;
            Ok((name, link, program))
        })
        .collect()
}

#[test]
fn killed_again_and_again_under_load_nothing_goes_astray() -> Result<()> {
    let mut stage = Stage::weights("kill", &[50, 30, 20])?;
    let clients: Vec<Client> = (0..2).map(|_| stage.client()).collect::<Result<_>>()?;
    let loads: Vec<Running<'_>> =
        clients.iter().map(|client| client.begin(&Load::connects(FRONTEND).threads(3).pause(pause()))).collect();
    let mut zeroed = Vec::new();
    let mut counted = 0;
    for round in 0..rounds(6) as usize {
        more(&loads)?;
        let target = ["node/n1", "shop/b1", "node/n1"][round % 3];
        stage.zero(target)?;
        // The answer is a promise, however soon the agent dies after it.
        let from = now();
        stage.agent.kill()?;
        more(&loads)?;
        stage.agent.start()?;
        more(&loads)?;
        let status = stage.backend("shop", "b1")?;
        assert_eq!((&status["state"], &status["newConnectionsSinceZero"]), (&json!("zero"), &json!(0)), "{status}");
        zeroed.push((from, now()));
        stage.restore(target)?;
        if round % 2 == 0 {
            stage.agent.kill()?;
            stage.agent.start()?;
        }
        let total = stage.status("shop")?["newConnections"].as_u64().unwrap();
        assert!(total > counted, "counts went from {counted} to {total}");
        counted = total;
        assert_eq!(stage.backend("shop", "b1")?["state"], "ready");
    }
    more(&loads)?;
    let reports: Vec<Report> = loads.into_iter().map(Running::stop).collect();
    let mut attempts = 0;
    for report in &reports {
        assert_all_answered(report);
        assert!(report.answered_by("b1") > 0);
        attempts += report.attempts.len() as u64;
        for (from, to) in &zeroed {
            let during = |micros: u64| (from.as_micros()..to.as_micros()).contains(&u128::from(micros));
            let astray = report.attempts.iter().find(|a| during(a.start_micros) && a.server.as_deref() == Some("b1"));
            assert!(astray.is_none(), "{astray:?}");
        }
    }
    // Every single one was counted, also those that came while there was no agent.
    assert_eq!(stage.status("shop")?["newConnections"], attempts);
    for backend in ["b1", "b2", "b3"] {
        stage.count_is("shop", backend, "activeConnections", 0)?;
    }
    Ok(())
}

#[test]
fn programs_are_replaced_in_place() -> Result<()> {
    let mut stage = Stage::weights("replace", &[1, 1])?;
    let client = stage.client()?;
    let kept = client.connect(FRONTEND)?;
    let server = kept.line()?;
    let load = client.begin(&Load::connects(FRONTEND).threads(3).pause(pause()));
    let mut before = links(&stage.agent)?;
    assert!(before.len() >= 10, "{before:?}");
    for graceful in [true, false, true] {
        more(std::slice::from_ref(&load))?;
        if graceful {
            assert!(stage.agent.terminate()?.success());
        } else {
            stage.agent.kill()?;
        }
        more(std::slice::from_ref(&load))?;
        stage.agent.start()?;
        let after = links(&stage.agent)?;
        for ((name, link, program), (same, new_link, new_program)) in before.iter().zip(&after) {
            assert_eq!((name, link), (same, new_link), "the link stays");
            assert_ne!(program, new_program, "{name}: the program is the new agent's");
        }
        assert_eq!(before.len(), after.len());
        before = after;
    }
    assert_eq!((kept.exchange("hello")?, kept.peer()?), (format!("{server}: hello"), FRONTEND.parse()?));
    assert_all_answered(&load.stop());
    Ok(())
}

#[test]
fn a_cgroup_that_was_made_anew_is_steered_again() -> Result<()> {
    let world = World::new("anew")?;
    let _server = world.tcp("10.0.0.1:8080", "b1")?;
    let child = world.cgroup.child("child")?;
    let mut agent = Agent::new(child.path())?;
    agent.start()?;
    agent.put("/v1/services/shop", &weighted(&[1]).json())?.expect_status(201);
    let dial = |cgroup: &Cgroup| -> Result<String> {
        Ok(Client::start(Some(cgroup), Some(&world.namespace))?.connect(FRONTEND)?.line()?)
    };
    assert_eq!(dial(&child)?, "b1");
    drop(child);
    let child = world.cgroup.child("child")?;
    agent.kill()?;
    agent.start()?;
    assert_eq!(dial(&child)?, "b1");
    Ok(())
}
