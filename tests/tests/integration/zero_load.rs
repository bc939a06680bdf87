//! Zero under load: the moment of the answer divides the connections sharply, and nobody is refused.

use std::time::Duration;

use anyhow::Result;
use sluice_tests::{
    Client, Load, Options, Report,
    client::Running,
    system::{now, pace, rounds},
};

use crate::stage::{FRONTEND, LIMIT, Stage, assert_all_answered};

/// Connections between two steps of a test, of each load.
const SOME: u64 = 10;

/// Each client's pause between connections: the agent needs some of the processor too.
pub fn pause() -> Duration {
    pace(Duration::from_millis(5))
}

/// Waits until every load has done some more.
pub fn more(loads: &[Running<'_>]) -> Result<()> {
    let goals: Vec<u64> = loads.iter().map(|load| load.attempts() + SOME).collect();
    loads.iter().zip(goals).try_for_each(|(load, goal)| load.reached(goal, LIMIT))
}

/// Zeroes and restores b1 again and again while clients connect as fast as they can.
pub fn check(label: &str, balance: &str, target: &str) -> Result<()> {
    let mut stage = Stage::new(label)?;
    stage.world.namespace.ip("route add local 10.9.0.0/16 dev lo")?;
    let service = stage.service(&[40, 30, 20, 10])?;
    stage.put(&service.set("balance", balance))?;
    let clients: Vec<Client> = (0..3).map(|_| stage.client()).collect::<Result<_>>()?;
    // With affinity a source is one client, and has one backend: there must be many to have some on b1.
    let loads: Vec<Running<'_>> = (0..24)
        .map(|number| {
            let options = Options::default().from(&format!("10.9.0.{}:0", number + 1)).reset_on_close();
            clients[number % 3].begin(&Load::connects(FRONTEND).options(options).pause(pause()))
        })
        .collect();
    let mut closed = Vec::new();
    for _ in 0..rounds(5) {
        more(&loads)?;
        let answer = stage.zero(target)?;
        let from = now();
        more(&loads)?;
        let to = now();
        let during = stage.backend("shop", "b1")?;
        assert_eq!(during["newConnectionsSinceZero"], 0, "{during}");
        assert_eq!(during["zeroedAt"], answer["zeroedAt"]);
        stage.restore(target)?;
        closed.push((from, to));
    }
    more(&loads)?;
    let reports: Vec<Report> = loads.into_iter().map(Running::stop).collect();
    let attempts: Vec<_> = reports.iter().flat_map(|report| &report.attempts).collect();
    let on_b1 = attempts.iter().filter(|attempt| attempt.server.as_deref() == Some("b1")).count();
    println!("{} connections, {on_b1} to b1", attempts.len());
    assert!(on_b1 as u64 > SOME, "b1 had only {on_b1} of {}", attempts.len());
    for report in &reports {
        assert_all_answered(report);
        for (from, to) in &closed {
            let during = report.since(*from).attempts.into_iter();
            let late = during
                .take_while(|attempt| u128::from(attempt.start_micros) < to.as_micros())
                .find(|attempt| attempt.server.as_deref() == Some("b1"));
            assert!(late.is_none(), "{late:?} began after the answer at {from:?}");
        }
    }
    Ok(())
}

#[test]
fn no_connection_begins_on_a_zeroed_node() -> Result<()> {
    check("load-spread", "spread", "node/n1")
}
