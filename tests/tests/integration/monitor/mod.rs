//! Decisions as they happen: `sluice monitor` against real calls.

mod in_place;

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sluice_common::tables::{BackendEntry, CLOSED_ZERO, Endpoint, TCP};
use sluice_tests::{
    Agent, Client, Load, Program, Service, agent, pins,
    system::{eventually, unique},
};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered, assert_exact};

/// The programs that choose a backend.
const CHOOSING: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];

/// `sluice monitor`, watching. Dropping it ends it.
pub struct Monitor(Program);

impl Monitor {
    fn begin(agent: &Agent, words: &[&str]) -> Result<Self> {
        let (program, socket) = (agent::program()?, agent.socket());
        let mut line = vec![path(&program), "--socket".into(), path(&socket), "monitor".into()];
        line.extend(words.iter().map(|word| (*word).to_owned()));
        Ok(Self(Program::start(None, None, &line)?))
    }

    pub fn start(agent: &Agent, words: &[&str]) -> Result<Self> {
        let mut monitor = Self::begin(agent, words)?;
        let watching = eventually("it watches", LIMIT, || {
            (monitor.0.log().contains("watching") || monitor.0.ended().is_some()).then_some(())
        });
        watching.with_context(|| monitor.0.log())?;
        assert!(monitor.0.ended().is_none(), "{}", monitor.0.log());
        Ok(monitor)
    }

    /// What it has printed as JSON so far.
    fn told(&self) -> Vec<Value> {
        let log = self.0.log();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
    }

    /// Waits for this many decisions, and returns all that there are.
    pub fn decisions(&self, count: usize) -> Result<Vec<Value>> {
        let told = || self.told().into_iter().filter(|told| told["call"].is_string()).collect::<Vec<_>>();
        let come = eventually("decisions come", LIMIT, || (told().len() >= count).then(told));
        come.with_context(|| self.0.log())
    }

    /// Ctrl-C.
    pub fn end(mut self) -> Result<String> {
        self.0.signal(Signal::SIGINT)?;
        let status = self.0.wait(LIMIT)?;
        assert!(status.success(), "{status}: {}", self.0.log());
        Ok(self.0.log())
    }
}

pub fn path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// The id of the program behind each link.
fn programs(agent: &Agent) -> Result<BTreeMap<String, u32>> {
    let names =
        pins::names(agent.bpffs()).into_iter().filter_map(|name| name.strip_prefix("links/").map(str::to_owned));
    names.map(|name| Ok((name.clone(), pins::link(&agent.bpffs().join("links").join(&name))?.1))).collect()
}

/// How many instructions the verifier looked at in each program, which tells one program from another.
fn sizes(agent: &Agent) -> Result<Vec<u64>> {
    CHOOSING.iter().map(|name| pins::verified(&agent.bpffs().join("links").join(name))).collect()
}

/// Changes an entry of BACKENDS behind the agent's back.
fn change(agent: &Agent, address: &str, change: impl FnOnce(&mut BackendEntry)) -> Result<()> {
    let wanted = Endpoint::new(address.parse()?, TCP);
    let table = agent.bpffs().join("maps/BACKENDS");
    let (id, _) = pins::find::<BackendEntry>(&table, 256, |backend| backend.address == wanted.address)?;
    pins::change(&table, id, change)
}

/// Whether these programs are those and no others, but for the ones that choose.
fn assert_observed(usual: &BTreeMap<String, u32>, now: &BTreeMap<String, u32>) {
    for (name, program) in usual {
        assert_eq!(now.get(name) != Some(program), CHOOSING.contains(&name.as_str()), "{name}: {usual:?}, {now:?}");
    }
}

fn are_back(agent: &Agent, usual: &BTreeMap<String, u32>) -> Result<()> {
    eventually("the usual programs are back", LIMIT, || programs(agent).is_ok_and(|now| now == *usual).then_some(()))
}

#[test]
fn a_decision_says_who_called_and_where_it_went() -> Result<()> {
    let stage = Stage::weights("monitor", &[1, 1])?;
    let client = stage.client()?;
    let usual = programs(&stage.agent)?;
    assert_all_answered(&client.spread(FRONTEND, 10));
    assert_eq!(stage.metric("sluice_monitor_decisions_total", &[])?, 0.0, "nobody watches");
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    assert_observed(&usual, &programs(&stage.agent)?);
    let connection = client.connect(FRONTEND)?;
    let server = connection.line()?;
    assert_eq!(connection.peer()?, FRONTEND.parse()?);
    let decisions = monitor.decisions(1)?;
    let [told] = &decisions[..] else { panic!("{decisions:?}") };
    let cgroup = stage.world.cgroup.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number = server.trim_start_matches('b');
    let expected = json!({
        "time": told["time"], "cgroupId": told["cgroupId"],
        "call": "connect4", "pid": client.id(), "command": "sluice-test-cli", "cgroup": format!("/{cgroup}"),
        "frontend": FRONTEND, "verdict": "steered", "service": "shop", "backend": server, "node": format!("n{number}"),
        "backendAddress": format!("10.0.0.{number}:8080"), "skipped": 0, "skippedBackends": [],
    });
    assert_eq!(told, &expected);
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    monitor.decisions(101)?;
    assert!(!monitor.end()?.contains("lost"));
    are_back(&stage.agent, &usual)?;
    assert_exact(&client.spread(FRONTEND, 100), 100, &[("b1", 0.5), ("b2", 0.5)]);
    assert_eq!(stage.metric("sluice_monitor_decisions_total", &[])?, 101.0);
    assert_eq!(stage.metric("sluice_monitor_watchers", &[])?, 0.0);
    assert_eq!(stage.status("shop")?["newConnections"], 211, "each is counted, whoever watches");
    Ok(())
}

#[test]
fn people_read_it_in_80_columns() -> Result<()> {
    let stage = Stage::weights("lines", &[1])?;
    let client = stage.client()?;
    let monitor = Monitor::start(&stage.agent, &["--service", "shop", "--count", "2"])?;
    assert_all_answered(&client.spread(FRONTEND, 3));
    let mut monitor = monitor.0;
    assert!(monitor.wait(LIMIT)?.success());
    let log = monitor.log();
    assert!(log.lines().all(|line| line.chars().count() <= 80), "{log}");
    let call = format!("connect4 sluice-test-cli/{}", client.id());
    let lines: Vec<_> = log.lines().filter(|line| line.contains(&call)).collect();
    assert_eq!(lines.len(), 2, "{log}");
    assert!(log.contains("shop/b1") && log.contains(FRONTEND) && log.contains("steered"), "{log}");
    Ok(())
}

#[test]
fn datagrams_are_told_each() -> Result<()> {
    let mut stage = Stage::new("datagrams")?;
    stage.udp("10.0.0.1:53", "u1")?;
    stage.put(&Service::new("dns", "10.96.0.53:53/udp").backend("u1", "10.0.0.1:53", 1))?;
    let client = stage.client()?;
    let monitor = Monitor::start(&stage.agent, &["-o", "json", "--frontend", "10.96.0.53:53/udp"])?;
    let socket = client.datagrams("0.0.0.0:0")?;
    for _ in 0..2 {
        assert_eq!(socket.exchange_with("x", "10.96.0.53:53")?.0, "u1: x");
    }
    let told = monitor.decisions(2)?;
    let verdicts: Vec<_> = told.iter().map(|told| (&told["call"], &told["verdict"], &told["backend"])).collect();
    let [steered, kept] = ["steered", "kept"].map(Value::from);
    assert_eq!(verdicts, [(&json!("sendmsg4"), &steered, &json!("u1")), (&json!("sendmsg4"), &kept, &json!("u1"))]);
    assert_eq!(told[0]["frontend"], "10.96.0.53:53/udp");
    Ok(())
}

#[test]
fn who_was_passed_over_is_named() -> Result<()> {
    let stage = Stage::weights("skipped", &[1, 1])?;
    let client = stage.client()?;
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    // As between a zero and the table that follows it: the programs themselves come across the closed backend.
    let closed = |bits| change(&stage.agent, "10.0.0.1:8080", |backend| backend.closed = bits);
    closed(CLOSED_ZERO)?;
    assert_eq!(client.spread(FRONTEND, 2).answered_by("b2"), 2);
    let b1 = |why: &str| json!({"backend": "b1", "node": "n1", "why": why});
    let told = monitor.decisions(2)?;
    let skipped: Vec<_> = told.iter().filter(|told| told["skipped"] == 1).collect();
    assert_eq!(skipped.len(), 1, "one of two draws falls on b1: {told:?}");
    assert_eq!(skipped[0]["skippedBackends"], json!([b1("zeroed")]));
    closed(0)?;
    // And what an operator closes is named although no draw can fall on it.
    stage.zero("shop/b1")?;
    assert_eq!(client.spread(FRONTEND, 1).answered_by("b2"), 1);
    stage.agent.post("/v1/nodes/n2/zero", &json!({"force": true}))?.expect_status(200);
    assert_eq!(client.spread(FRONTEND, 1).errors().len(), 1);
    let told = monitor.decisions(4)?;
    assert_eq!((&told[2]["verdict"], &told[2]["backend"]), (&json!("steered"), &json!("b2")));
    assert_eq!(told[2]["skippedBackends"], json!([b1("zeroed")]));
    assert_eq!((&told[3]["verdict"], &told[3]["backend"]), (&json!("refused"), &Value::Null));
    let b2 = json!({"backend": "b2", "node": "n2", "why": "nodeZeroed"});
    // The table that follows the zero of the node is there already, or b2 is still in it.
    let skipped = &told[3]["skippedBackends"];
    assert!(*skipped == json!([b1("zeroed"), b2]) || *skipped == json!([b2, b1("zeroed")]), "{skipped}");
    Ok(())
}

#[test]
fn one_that_the_caller_cannot_reach_is_named() -> Result<()> {
    let stage = Stage::weights("family", &[1])?;
    let client = stage.client()?;
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    // No document may say so.
    change(&stage.agent, "10.0.0.1:8080", |backend| backend.address = [1; 4])?;
    assert_eq!(client.spread(FRONTEND, 1).errors().len(), 1, "the call goes to the original address");
    let told = monitor.decisions(1)?;
    assert_eq!((&told[0]["verdict"], &told[0]["backend"]), (&json!("broken"), &Value::Null));
    assert_eq!(told[0]["skippedBackends"], json!([{"backend": "b1", "node": "n1", "why": "otherFamily"}]));
    Ok(())
}

#[test]
fn two_who_watch_see_each_their_own() -> Result<()> {
    let stage = Stage::weights("two", &[1])?;
    let usual = programs(&stage.agent)?;
    let clients = [stage.client()?, stage.client()?];
    let pids = [0, 1].map(|i| clients[i].id());
    let [first, second] = pids.map(|pid| Monitor::start(&stage.agent, &["--pid", &pid.to_string(), "-o", "json"]));
    let monitors = [first?, second?];
    for (client, count) in clients.iter().zip([2, 3]) {
        assert_all_answered(&client.spread(FRONTEND, count));
    }
    for ((monitor, pid), count) in monitors.iter().zip(pids).zip([2, 3]) {
        let told = monitor.decisions(count)?;
        assert!(told.len() == count && told.iter().all(|told| told["pid"] == pid), "{told:?}");
    }
    let [first, second] = monitors;
    first.end()?;
    assert_observed(&usual, &programs(&stage.agent)?);
    // Now one filter is left, and holds in the kernel again.
    let before = stage.metric("sluice_monitor_decisions_total", &[])?;
    eventually("the filter is that of the one who is left", LIMIT, || {
        (stage.metric("sluice_monitor_watchers", &[]).ok()? == 1.0).then_some(())
    })?;
    clients.iter().for_each(|client| assert_all_answered(&client.spread(FRONTEND, 1)));
    second.decisions(4)?;
    assert_eq!(stage.metric("sluice_monitor_decisions_total", &[])? - before, 1.0);
    second.end()?;
    are_back(&stage.agent, &usual)
}

#[test]
fn what_is_lost_is_counted() -> Result<()> {
    const CALLS: u64 = 4000;
    let stage = Stage::weights("lost", &[0])?;
    let client = stage.client()?;
    let monitor = Monitor::start(&stage.agent, &["-o", "json"])?;
    // Nobody takes decisions out of the ring, which has no room for so many.
    stage.agent.signal(Signal::SIGSTOP)?;
    let report = client.run(&Load::connects(FRONTEND).count(CALLS));
    stage.agent.signal(Signal::SIGCONT)?;
    assert_eq!(report.errors().values().sum::<u64>(), CALLS, "all are refused");
    let sum = || {
        let told = monitor.told();
        let lost: u64 = told.iter().filter_map(|told| told["lost"].as_u64()).sum();
        (told.iter().filter(|told| told["call"].is_string()).count() as u64, lost)
    };
    let all = eventually("told or lost", LIMIT, || Some(sum()).filter(|(told, lost)| told + lost == CALLS));
    let (told, lost) = all.with_context(|| format!("{:?}", sum()))?;
    assert!(told > 0 && lost > 0, "{told} and {lost}");
    assert_eq!(stage.metric("sluice_monitor_lost_total", &[])?, lost as f64);
    assert!(monitor.end()?.contains(&format!("{told} decisions shown, {lost} lost")));
    Ok(())
}

#[test]
fn calls_from_a_cgroup_that_is_gone_are_told() -> Result<()> {
    let stage = Stage::weights("gone", &[1])?;
    let inner = stage.world.cgroup.child(&unique("inner"))?;
    let client = Client::start(Some(&inner), Some(&stage.world.namespace))?;
    let directory = inner.path().to_owned();
    let monitor = Monitor::start(&stage.agent, &["-o", "json", "--cgroup", &path(stage.world.cgroup.path())])?;
    stage.agent.signal(Signal::SIGSTOP)?;
    assert_all_answered(&client.spread(FRONTEND, 1));
    drop(client);
    drop(inner);
    assert!(!directory.exists());
    stage.agent.signal(Signal::SIGCONT)?;
    assert_eq!(monitor.decisions(1)?[0]["cgroup"], Value::Null);
    Ok(())
}
