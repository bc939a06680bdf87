//! An agent takes over what the former release has left: nothing is lost, nothing goes astray, and an upgrade that was
//! killed is finished by the next agent.

mod former;

use std::{fs, time::Duration};

use anyhow::Result;
use serde_json::json;
use sluice_common::{
    ABI_VERSION,
    streak::FailureStreak,
    tables::{BackendEntry, Meta},
};
use sluice_tests::{Agent, Client, Load, client::Running, pins};

use crate::{
    drain::{QUIET, drain, ends, is_closed},
    forge,
    stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact, backend_address},
};

fn more(load: &Running<'_>) -> Result<u64> {
    load.reached(load.attempts() + 20, LIMIT)?;
    Ok(load.attempts())
}

fn version(agent: &Agent) -> Result<u32> {
    Ok(pins::value::<Meta>(&agent.bpffs().join("maps/META"), 0)?.abi_version)
}

fn links(agent: &Agent) -> Result<Vec<(u32, u32)>> {
    let names = pins::names(agent.bpffs()).into_iter().filter(|name| name.starts_with("links/"));
    names.map(|name| pins::link(&agent.bpffs().join(name))).collect()
}

#[test]
fn what_the_former_release_left_goes_on() -> Result<()> {
    let mut stage = Stage::weights("upgrade", &[1, 1, 1])?;
    let (client, other) = (stage.client()?, stage.client()?);
    stage.zero("shop/b3")?;
    let pinned = pins::names(stage.agent.bpffs());
    stage.agent.kill()?;
    former::install(&stage.agent)?;
    let maps = stage.agent.bpffs().join("maps");
    let failing = forge::backend_id(&stage.agent, &backend_address(2))?;
    pins::change::<FailureStreak>(&maps.join("WATCHES"), failing, |streak| streak.early_resets_total = 7)?;
    // The former programs steer, follow and count.
    let kept = [client.connect(FRONTEND)?, client.connect(FRONTEND)?];
    let names = [kept[0].line()?, kept[1].line()?];
    let load = other.begin(&Load::connects(FRONTEND).threads(2).pause(Duration::from_millis(3)));
    let before = more(&load)?;
    let replaced = links(&stage.agent)?;

    stage.agent.start()?;
    let ready = load.attempts();
    more(&load)?;
    let report = load.stop();
    assert_all_answered(&report);
    let total = report.attempts.len() as u64;
    assert_eq!(report.answered_by("b1") + report.answered_by("b2"), total, "b3 is zeroed");
    assert_eq!(stage.status("shop")?["newConnections"], total + 2, "every single one was counted");
    assert_eq!(version(&stage.agent)?, ABI_VERSION);
    assert_eq!(pins::names(stage.agent.bpffs()), pinned, "there is nothing of the former release any more");
    for ((link, program), (link_before, program_before)) in links(&stage.agent)?.into_iter().zip(replaced) {
        assert!(link == link_before && program != program_before, "each link has another program");
    }
    let steered = [("program", "connect4"), ("verdict", "steered")];
    let steered = stage.metric("sluice_verdicts_total", &steered)? as u64;
    assert!(steered >= before + 2 + (total - ready) - 2, "{steered} of {before} before and {total} in all");
    assert!(steered <= total + 2, "{steered} of {total}");
    assert_eq!(pins::value::<FailureStreak>(&maps.join("STREAKS"), failing)?.early_resets_total, 7);

    // What began before is followed to its end.
    for (connection, name) in kept.iter().zip(&names) {
        assert_eq!(connection.exchange("hello")?, format!("{name}: hello"));
        stage.count_is("shop", name, "activeConnections", 1)?;
    }
    let node = names[0].replace('b', "n");
    let id = drain(&stage, &format!("node/{node}"), &json!({"idleClose": QUIET}))?;
    is_closed(&kept[0])?;
    let drained = ends(&stage, &id)?;
    assert_eq!((&drained["phase"], &drained["closedIdle"]), (&json!("drained"), &json!(1)), "{drained}");
    assert_eq!(kept[1].exchange("hello")?, format!("{}: hello", names[1]));
    assert_eq!(client.spread(FRONTEND, 10).answered_by(&names[1]), 10);
    Ok(())
}

#[test]
fn an_upgrade_that_was_killed_is_finished() -> Result<()> {
    let mut stage = Stage::weights("killed-upgrade", &[3, 1])?;
    let client = stage.client()?;
    let pinned = pins::names(stage.agent.bpffs());
    let maps = stage.agent.bpffs().join("maps");
    for steps in 1..=4 {
        stage.agent.kill()?;
        let verdicts = pins::open(&maps.join("VERDICTS"))?;
        former::install(&stage.agent)?;
        let kept = client.connect(FRONTEND)?;
        let name = kept.line()?;
        for step in 1..=steps {
            match step {
                1 => pins::pin(&verdicts, &maps.join("VERDICTS_new"))?,
                2 => forge::meta(&stage.agent, |meta| meta.abi_version = ABI_VERSION)?,
                3 => fs::rename(maps.join("VERDICTS_new"), maps.join("VERDICTS"))?,
                _ => fs::rename(maps.join("WATCHES"), maps.join("STREAKS"))?,
            }
        }
        still_steered(&client);
        stage.agent.start()?;
        still_steered(&client);
        assert_eq!(version(&stage.agent)?, ABI_VERSION);
        assert_eq!(pins::names(stage.agent.bpffs()), pinned, "after {steps} steps");
        assert_eq!(kept.exchange("hello")?, format!("{name}: hello"));
        stage.count_is("shop", &name, "activeConnections", 1)?;
        drop(kept);
        stage.count_is("shop", &name, "activeConnections", 0)?;
    }
    Ok(())
}

#[test]
fn an_agent_that_cannot_upgrade_leaves_the_former_release_as_it_is() -> Result<()> {
    let mut stage = Stage::weights("no-upgrade", &[3, 1])?;
    let client = stage.client()?;
    stage.agent.kill()?;
    former::install(&stage.agent)?;
    let (pinned, programs) = (pins::names(stage.agent.bpffs()), links(&stage.agent)?);
    let backend = forge::backend_id(&stage.agent, &backend_address(2))?;
    let refuses = |mut other: Agent, why: &str| -> Result<()> {
        other.spawn()?;
        assert_eq!(other.wait(LIMIT)?.code(), Some(1));
        assert!(other.log().contains(why), "{}", other.log());
        assert_eq!((links(&stage.agent)?, version(&stage.agent)?), (programs.clone(), former::VERSION), "{why}");
        Ok(())
    };
    refuses(stage.agent.sibling().argument("--max-services").argument("4096"), "--max-services")?;
    assert_eq!(pins::names(stage.agent.bpffs()), pinned);
    let of_another_store = || forge::meta(&stage.agent, |meta| meta.store[0] ^= 1);
    of_another_store()?;
    refuses(stage.agent.sibling(), "--state-dir that it had before")?;
    of_another_store()?;
    let table = stage.agent.bpffs().join("maps/BACKENDS");
    let moved = || pins::change::<BackendEntry>(&table, backend, |backend| backend.port ^= 1);
    moved()?;
    refuses(stage.agent.sibling(), "the store is an older copy")?;
    moved()?;
    still_steered(&client);
    stage.agent.start()?;
    still_steered(&client);
    Ok(())
}

#[track_caller]
fn still_steered(client: &Client) {
    assert_exact(&client.spread(FRONTEND, 40), 40, &[("b1", 0.75), ("b2", 0.25)]);
}
