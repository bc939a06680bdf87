//! What clients see in two corners: when nothing is left, and when the backend that a client keeps is zeroed.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use sluice_tests::interrupt;

use crate::compare::{
    Run,
    candidates::Candidate,
    load::{Open, Opened},
    readings::{Measure, Of},
    setup::{NODES, PLAIN, Service},
};

/// Every candidate that steers.
pub fn run(run: &mut Run) -> Result<()> {
    for at in run.steering(0) {
        interrupt::check()?;
        if run.is_late(0) {
            break;
        }
        let candidate = &mut run.candidates[at];
        let of = Of::plain(candidate.name());
        let seen = nothing_left(candidate.as_mut()).unwrap_or_else(|error| format!("{error:#}"));
        run.readings.words(of, Measure::NothingLeft, seen);
        let seen = affinity(candidate.as_mut()).unwrap_or_else(|error| format!("{error:#}"));
        run.readings.words(of, Measure::Affinity, seen);
    }
    Ok(())
}

fn nothing_left(candidate: &mut dyn Candidate) -> Result<String> {
    let service = Service::even(0, PLAIN);
    candidate.load(std::slice::from_ref(&service))?;
    for node in 0..NODES {
        candidate.zero(node, candidate.ways()[0])?;
    }
    // Old workers of proxies have left by then.
    std::thread::sleep(Duration::from_secs(1));
    let opened = open(candidate, &service, 3)?;
    let seen: Vec<&str> = opened.failed.keys().map(String::as_str).collect();
    Ok(match (opened.answered, seen.as_slice()) {
        (0, seen) => seen.join(", "),
        (_, []) => "connections go on as before".to_owned(),
        (_, seen) => format!("some connections go on, others: {}", seen.join(", ")),
    })
}

fn affinity(candidate: &mut dyn Candidate) -> Result<String> {
    let service = Service { affinity: true, ..Service::even(0, PLAIN) };
    candidate.load(std::slice::from_ref(&service))?;
    let before = nodes(&open(candidate, &service, 10)?);
    ensure!(before.len() == 1, "the client does not keep one node: {before:?}");
    let kept = before.first().copied().unwrap_or_default();
    candidate.zero(kept, candidate.ways()[0])?;
    std::thread::sleep(Duration::from_secs(1));
    let opened = open(candidate, &service, 10)?;
    let after = nodes(&opened);
    Ok(match (after.contains(&kept), opened.failed.is_empty()) {
        (true, _) => "stays with the backend that was zeroed".to_owned(),
        (false, true) => "moves at once".to_owned(),
        (false, false) => format!("moves, {:?}", opened.failed),
    })
}

fn open(candidate: &mut dyn Candidate, service: &Service, most: u64) -> Result<Opened> {
    let to = candidate.targets(service);
    candidate.host().open(Open { to, threads: 1, time: Duration::from_secs(20), most, pause: Duration::ZERO })
}

fn nodes(opened: &Opened) -> BTreeSet<usize> {
    (0..NODES).filter(|node| opened.nodes[*node] > 0).collect()
}
