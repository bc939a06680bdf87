//! Requests without an answer while a node leaves: at a zero, under quick requests, and at a drain, where clients keep
//! connections for good and some requests are always in flight.

use std::{thread, time::Duration};

use anyhow::Result;
use sluice_tests::{interrupt, system::now};

use crate::compare::{
    Run,
    candidates::Candidate,
    few,
    load::{Keep, Kept, Work},
    readings::{Measure, Of, Readings},
    setup::Service,
    slow, web,
};

const ROUNDS: usize = 3;
const NODE: usize = 0;
/// Of a drain: who still answers after that stays.
const LIMIT: Duration = Duration::from_secs(8);

/// Every candidate that steers.
pub fn run(run: &mut Run) -> Result<()> {
    let rounds = run.rounds(ROUNDS);
    let servers = !run.emulated;
    for candidate in run.candidates.iter_mut().filter(|candidate| !candidate.ways().is_empty()) {
        let of = Of::plain(candidate.name());
        let (mut at_zero, mut at_drain, mut drained) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            interrupt::check()?;
            candidate.load(&few())?;
            if servers {
                at_zero.push(zero(candidate.as_mut())?);
            }
            if candidate.drains_by().is_some() {
                let (lost, seconds) = drain(candidate.as_mut())?;
                at_drain.push(lost);
                drained.push(seconds);
            }
        }
        report(&mut run.readings, of, candidate.drains_by(), [&at_zero, &at_drain, &drained]);
    }
    Ok(())
}

fn report(readings: &mut Readings, of: Of, drains_by: Option<&str>, samples: [&[f64]; 3]) {
    let [at_zero, at_drain, drained] = samples;
    readings.number(of, Measure::LostAtZero, at_zero);
    match drains_by {
        Some(way) => {
            let of = Of { way, ..of };
            readings.number(of, Measure::LostAtDrain, at_drain);
            readings.number(of, Measure::Drained, drained);
        }
        None => readings.words(of, Measure::Drained, "no means: kept connections stay"),
    }
}

fn keep(candidate: &dyn Candidate, service: &Service, connections: u64, think: Duration) -> Work {
    let to = candidate.targets(service)[0];
    Work::Keep(Keep { to, connections, time: Duration::from_secs(60), think })
}

/// Lost requests while a node is zeroed and taken back.
fn zero(candidate: &mut dyn Candidate) -> Result<f64> {
    let work = keep(candidate, &web(), 32, Duration::from_millis(2));
    candidate.host().begin(work)?;
    thread::sleep(Duration::from_secs(1));
    candidate.zero(NODE, candidate.ways()[0])?;
    thread::sleep(Duration::from_secs(2));
    candidate.restore()?;
    thread::sleep(Duration::from_secs(1));
    let kept: Kept = candidate.host().end()?;
    Ok(kept.failed as f64)
}

/// Lost requests while a node is drained, and seconds until its last answer.
fn drain(candidate: &mut dyn Candidate) -> Result<(f64, f64)> {
    candidate.prepare_drain()?;
    let work = keep(candidate, &slow(), 48, Duration::from_millis(250));
    candidate.host().begin(work)?;
    thread::sleep(Duration::from_secs(2));
    let start = now();
    candidate.drain(NODE)?;
    thread::sleep(LIMIT);
    let kept: Kept = candidate.host().end()?;
    Ok((kept.failed as f64, kept.last[NODE].saturating_sub(start).as_secs_f64()))
}
