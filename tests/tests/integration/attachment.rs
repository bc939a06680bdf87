//! Somebody detaches programs, removes pins or the cgroup: steering comes back, and nothing is said meanwhile that is not
//! so.

use std::fs;

use anyhow::Result;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use sluice_tests::{Agent, Cgroup, Client, World, pins, system::eventually};
use tempfile::TempDir;

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, weighted};

/// Kinds of the agent's events about what is attached, with their messages.
fn told(agent: &Agent) -> Result<Vec<(String, String)>> {
    let events = agent.get("/v1/events?follow=false")?.expect_status(200).json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let events = events["items"].as_array().into_iter().flatten();
    let events = events.map(|event| (text(&event["kind"]), text(&event["message"])));
    let kinds = ["attachmentLost", "attachmentRestored", "neighboursChanged"];
    Ok(events.filter(|(kind, _)| kinds.contains(&kind.as_str())).collect())
}

/// Waits for an event of this kind that says this.
fn is_told(agent: &Agent, kind: &str, said: &str) -> Result<()> {
    eventually(&format!("{kind}: {said}"), LIMIT, || {
        let told = told(agent).ok()?;
        told.iter().any(|(found, message)| found == kind && message.contains(said)).then_some(())
    })
}

fn is_ready(agent: &Agent) -> Result<()> {
    eventually("the agent is ready", LIMIT, || (agent.get("/readyz").ok()?.status == 200).then_some(()))
}

/// Waits until /readyz answers 503 and names this.
fn is_not_ready(agent: &Agent, said: &str) -> Result<()> {
    eventually(&format!("not ready: {said}"), LIMIT, || {
        let answer = agent.get("/readyz").ok()?;
        (answer.status == 503 && answer.text().contains(said)).then_some(())
    })
}

/// A world whose agent steers a cgroup that a test removes and makes again.
struct Removable {
    agent: Agent,
    child: Option<Cgroup>,
    _server: sluice_tests::Server,
    world: World,
}

impl Removable {
    fn new(label: &str) -> Result<Self> {
        let world = World::new(label)?;
        let server = world.tcp("10.0.0.1:8080", "b1")?;
        let child = world.cgroup.child("child")?;
        let mut agent = Agent::new(child.path())?;
        agent.start()?;
        agent.put("/v1/services/shop", &weighted(&[1]).json())?.expect_status(201);
        let stage = Self { agent, child: Some(child), _server: server, world };
        assert_eq!(stage.dial()?, "b1");
        Ok(stage)
    }

    fn dial(&self) -> Result<String> {
        Ok(Client::start(self.child.as_ref(), Some(&self.world.namespace))?.connect(FRONTEND)?.line()?)
    }

    fn remove(&mut self) {
        self.child = None;
    }

    fn make(&mut self) -> Result<()> {
        self.child = Some(self.world.cgroup.child("child")?);
        Ok(())
    }

    fn zero(&self) -> Result<Value> {
        Ok(self.agent.post("/v1/nodes/n1/zero", &json!({"force": true}))?.expect_status(200).json())
    }
}

#[test]
fn a_link_that_somebody_detaches_is_replaced() -> Result<()> {
    let mut stage = Stage::weights("detached", &[1, 1])?;
    let client = stage.client()?;
    for name in ["connect4", "sock_ops"] {
        let pin = stage.agent.bpffs().join("links").join(name);
        let (link, program) = pins::link(&pin)?;
        pins::detach(&pin)?;
        is_told(&stage.agent, "attachmentLost", &format!("{name} is not attached"))?;
        is_told(&stage.agent, "attachmentRestored", name)?;
        let (new_link, same_program) = pins::link(&pin)?;
        assert!(new_link != link && same_program == program, "{name}");
        is_ready(&stage.agent)?;
        assert_all_answered(&client.spread(FRONTEND, 20));
    }
    assert_eq!(stage.metric("sluice_attachments_lost_total", &[("kind", "program")])?, 2.0);
    assert_eq!(stage.metric("sluice_program_attached", &[("program", "connect4")])?, 1.0);
    // The new links outlive the agent as the old ones did.
    stage.agent.kill()?;
    assert_all_answered(&client.spread(FRONTEND, 20));
    stage.agent.start()?;
    assert!(told(&stage.agent)?.is_empty(), "nothing was lost meanwhile");
    Ok(())
}

#[test]
fn a_program_that_somebody_puts_under_a_link_goes_again() -> Result<()> {
    let stage = Stage::weights("swapped", &[1])?;
    let other = Stage::weights("other", &[1])?;
    let pin = |stage: &Stage| stage.agent.bpffs().join("links/connect4");
    let (_, program) = pins::link(&pin(&stage))?;
    pins::replace_by(&pin(&stage), &pin(&other))?;
    is_told(&stage.agent, "attachmentRestored", "connect4")?;
    assert_eq!(pins::link(&pin(&stage))?.1, program);
    assert_all_answered(&stage.client()?.spread(FRONTEND, 3));
    Ok(())
}

#[test]
fn pins_that_somebody_removes_come_back_and_not_one_connection_goes_astray() -> Result<()> {
    let mut stage = Stage::weights("unpinned", &[1, 1])?;
    let client = stage.client()?;
    let bpffs = stage.agent.bpffs().to_owned();
    let all = |agent: &Agent| -> Result<Vec<(String, (u32, u32))>> {
        let names = pins::names(agent.bpffs()).into_iter();
        names.map(|name| Ok((name.clone(), pins::link(&agent.bpffs().join(name))?))).collect()
    };
    let before = all(&stage.agent)?;
    let are_back = |agent: &Agent| {
        eventually("all pins are back", LIMIT, || all(agent).ok().filter(|now| *now == before).map(drop))
    };
    for name in ["links/connect4", "maps/NODES"] {
        fs::remove_file(bpffs.join(name))?;
        assert_all_answered(&client.spread(FRONTEND, 10));
        are_back(&stage.agent)?;
        is_told(&stage.agent, "attachmentLost", name)?;
        is_told(&stage.agent, "attachmentRestored", name)?;
    }
    // Something else in the place of a pin.
    let table = pins::open(&bpffs.join("maps/BACKENDS"))?;
    fs::remove_file(bpffs.join("maps/SLOTS"))?;
    let _ = pins::pin(&table, &bpffs.join("maps/SLOTS"));
    are_back(&stage.agent)?;
    // All of them, with their directories: what is removed meanwhile may come back meanwhile.
    eventually("the directory is gone for a moment", LIMIT, || fs::remove_dir_all(&bpffs).ok())?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    are_back(&stage.agent)?;
    is_ready(&stage.agent)?;
    let counted = stage.status("shop")?["newConnections"].as_u64().unwrap();
    stage.agent.kill()?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    stage.agent.start()?;
    assert_eq!(stage.status("shop")?["newConnections"], counted + 10, "the tables are the same ones");
    Ok(())
}

#[test]
fn a_pin_that_cannot_be_put_back_is_named_until_it_can() -> Result<()> {
    let stage = Stage::weights("inway", &[1, 1])?;
    let links = stage.agent.bpffs().join("links");
    fs::create_dir(links.join("connect4_new"))?;
    fs::remove_file(links.join("connect4"))?;
    is_not_ready(&stage.agent, "links/connect4")?;
    assert_all_answered(&stage.client()?.spread(FRONTEND, 10));
    assert!(stage.zero("node/n1")?["unproven"].is_null(), "a pin steers nothing");
    fs::remove_dir(links.join("connect4_new"))?;
    is_ready(&stage.agent)?;
    assert!(links.join("connect4").exists());
    Ok(())
}

/// A bpf file system of the test's own.
struct BpfMount(TempDir);

impl BpfMount {
    fn new() -> Result<Self> {
        let mount = Self(TempDir::with_prefix("sluice-test-bpf-")?);
        mount.mount()?;
        Ok(mount)
    }

    fn mount(&self) -> Result<()> {
        Ok(mount(Some("bpf"), self.0.path(), Some("bpf"), MsFlags::empty(), None::<&str>)?)
    }

    /// Also while files in it are open.
    fn unmount(&self) -> Result<()> {
        Ok(umount2(self.0.path(), MntFlags::MNT_DETACH)?)
    }
}

impl Drop for BpfMount {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.unmount();
    }
}

#[test]
fn a_bpf_file_system_that_is_unmounted_takes_no_connection_with_it() -> Result<()> {
    let bpf = BpfMount::new()?;
    let path = bpf.0.path().join("sluice");
    let mut stage = Stage::with("unmounted", |agent| agent.pinned_in(&path))?;
    let service = stage.service(&[1, 1])?;
    stage.put(&service)?;
    let client = stage.client()?;
    let before = pins::names(&path);
    bpf.unmount()?;
    is_not_ready(&stage.agent, "is not on a bpf file system")?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    bpf.mount()?;
    is_ready(&stage.agent)?;
    assert_eq!(pins::names(&path), before);
    stage.agent.kill()?;
    stage.agent.start()?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    assert_eq!(stage.status("shop")?["newConnections"], 20, "the tables are the same ones");
    drop(stage);
    Ok(())
}

#[test]
fn a_cgroup_that_is_gone_is_named_and_steered_again_when_it_is_made_anew() -> Result<()> {
    let mut stage = Removable::new("gone")?;
    stage.remove();
    is_not_ready(&stage.agent, "connect4")?;
    assert_eq!(stage.agent.metric("sluice_program_attached", &[("program", "connect4")])?, Some(0.0));
    is_told(&stage.agent, "attachmentLost", "connect4")?;
    stage.make()?;
    is_ready(&stage.agent)?;
    assert_eq!(stage.dial()?, "b1");
    stage.agent.kill()?;
    assert_eq!(stage.dial()?, "b1", "the links on the new one are pinned");
    stage.agent.start()?;
    assert!(told(&stage.agent)?.is_empty(), "nothing was lost meanwhile");
    Ok(())
}

#[test]
fn a_zero_proves_nothing_for_the_time_without_programs() -> Result<()> {
    let mut stage = Removable::new("unproven")?;
    let unproven = |zero: &Value| zero["unproven"].as_str().unwrap_or_default().to_owned();
    stage.remove();
    let zero = stage.zero()?;
    assert!(unproven(&zero).contains("connect4"), "{zero}");
    let output = stage.agent.cli(&["zero", "node/n1", "--force"])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("Not proven"), "{said}");
    stage.make()?;
    is_ready(&stage.agent)?;
    let status = |stage: &Removable| -> Result<Value> {
        Ok(stage.agent.get("/v1/nodes/n1")?.expect_status(200).json()["status"].clone())
    };
    let before = unproven(&status(&stage)?);
    assert!(before.contains("were not attached"), "{before}");
    stage.agent.kill()?;
    stage.agent.start()?;
    assert_eq!(unproven(&status(&stage)?), before, "another agent knows it too");
    stage.agent.post("/v1/nodes/n1/restore", &json!({}))?.expect_status(200);
    assert_eq!(unproven(&stage.zero()?), "", "a new zero is proven");
    Ok(())
}

#[test]
fn a_drain_does_not_say_drained_while_programs_are_detached() -> Result<()> {
    let mut stage = Removable::new("undrained")?;
    stage.remove();
    let asked = json!({"force": true, "deadline": "60s"});
    let drain = stage.agent.post("/v1/nodes/n1/drain", &asked)?.json();
    let id = drain["id"].as_str().unwrap_or_default().to_owned();
    let operation = |stage: &Removable, wait: &str| -> Result<Value> {
        Ok(stage.agent.get(&format!("/v1/operations/{id}{wait}"))?.json())
    };
    let waiting = operation(&stage, "?wait=drained&timeout=2s")?;
    assert_ne!(waiting["phase"], "drained", "{waiting}");
    assert!(waiting["message"].as_str().unwrap_or_default().contains("not attached"), "{waiting}");
    stage.make()?;
    let drained = operation(&stage, "?wait=drained&timeout=20s")?;
    assert_eq!(drained["phase"], "drained", "{drained}");
    Ok(())
}

#[test]
fn what_was_detached_while_no_agent_ran_is_told_by_the_next_one() -> Result<()> {
    let mut stage = Stage::weights("while", &[1, 1])?;
    stage.zero("node/n1")?;
    stage.agent.kill()?;
    pins::detach(&stage.agent.bpffs().join("links/connect4"))?;
    stage.agent.start()?;
    is_told(&stage.agent, "attachmentLost", "connect4")?;
    let status = stage.backend("shop", "b1")?;
    assert!(status["unproven"].as_str().unwrap_or_default().contains("were not attached"), "{status}");
    assert_all_answered(&stage.client()?.spread(FRONTEND, 3));
    Ok(())
}

#[test]
fn tables_that_went_with_their_agent_are_told_by_the_next_one_and_by_those_after_it() -> Result<()> {
    let mut stage = Stage::weights("went", &[1, 1])?;
    stage.zero("node/n1")?;
    stage.agent.kill()?;
    fs::remove_dir_all(stage.agent.bpffs().join("links"))?;
    fs::remove_dir_all(stage.agent.bpffs().join("maps"))?;
    for _ in 0..2 {
        stage.agent.start()?;
        let status = stage.backend("shop", "b1")?;
        assert!(status["unproven"].as_str().unwrap_or_default().contains("were not attached"), "{status}");
        stage.agent.kill()?;
    }
    stage.agent.start()?;
    assert_all_answered(&stage.client()?.spread(FRONTEND, 3));
    // A zero of now proves all again.
    stage.restore("node/n1")?;
    stage.zero("node/n1")?;
    assert!(stage.backend("shop", "b1")?["unproven"].is_null());
    Ok(())
}

#[test]
fn tables_whose_pins_went_while_no_agent_ran_are_those_that_steer() -> Result<()> {
    let mut stage = Stage::weights("unpinned", &[1, 1])?;
    let client = stage.client()?;
    let open = client.connect(FRONTEND)?;
    open.line()?;
    stage.zero("node/n1")?;
    let counted = stage.count("shop", "b2", "newConnections")?;
    stage.agent.kill()?;
    for table in ["FRONTENDS", "CONNECTIONS", "SERVICES", "SLOTS", "BACKENDS", "META"] {
        fs::remove_file(stage.agent.bpffs().join("maps").join(table))?;
    }
    stage.agent.start()?;
    assert_eq!(stage.count("shop", "b2", "newConnections")?, counted, "the counts go on");
    let active = |backend: &str| stage.count("shop", backend, "activeConnections");
    assert_eq!(active("b1")? + active("b2")?, 1, "the open connection is known");
    let status = stage.backend("shop", "b1")?;
    assert!(status["unproven"].is_null() && status["state"] == "zero", "{status}");
    assert_eq!(client.spread(FRONTEND, 10).answered_by("b2"), 10);
    Ok(())
}

#[test]
fn programs_of_others_on_the_same_hooks_are_listed_and_a_change_is_told() -> Result<()> {
    let stage = Removable::new("beside")?;
    let cgroup = stage.child.as_ref().unwrap().path().to_string_lossy().into_owned();
    let bpffs = stage.agent.bpffs().to_string_lossy().into_owned();
    let check = || -> Result<Value> {
        let output = stage.agent.cli(&["check", "--cgroup", &cgroup, "--bpffs", &bpffs, "-o", "json"])?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let on_connect4 = |check: &Value| -> Vec<Value> {
        let programs = check["programs"].as_array().cloned().unwrap_or_default();
        programs.into_iter().filter(|program| program["hook"] == "connect4").collect()
    };
    let alone = on_connect4(&check()?);
    assert_eq!(alone.iter().filter(|program| program["ours"] == true).count(), 1, "{alone:?}");
    // Those of the cgroup above run too, after ours.
    let mut other = Agent::new(stage.world.cgroup.path())?;
    other.start()?;
    let (_, id) = pins::link(&other.bpffs().join("links/connect4"))?;
    is_told(&stage.agent, "neighboursChanged", &format!("connect4 (id {id}, after Sluice)"))?;
    let beside = on_connect4(&check()?);
    let theirs = beside.iter().find(|program| program["id"] == id);
    assert!(theirs.is_some_and(|program| program["ours"] == false && program["name"] == "connect4"), "{beside:?}");
    assert_eq!(beside.len(), alone.len() + 1);
    drop(other);
    eventually("it is told that they are gone", LIMIT, || {
        let told = told(&stage.agent).ok()?;
        let last = told.iter().rev().find(|(_, message)| message.contains("connect4: "))?;
        (!last.1.contains(&format!("id {id},"))).then_some(())
    })?;
    Ok(())
}
