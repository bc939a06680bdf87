//! Requests without an answer while a node leaves: at a zero, under quick requests, and at a drain, where clients keep
//! connections for good and some requests are always in flight.

use std::{thread, time::Duration};

use anyhow::Result;
use sluice_tests::{interrupt, system::now};

use crate::compare::{
    Run,
    candidates::{Candidate, meanwhile},
    few,
    load::{Keep, Kept, Work},
    readings::{Measure, Of, Readings},
    setup::Service,
    slow, web,
};

const ROUNDS: usize = 3;
const NODE: usize = 0;
/// Of a drain: who still answers after that stays.
const LIMIT: Duration = Duration::from_secs(5);

/// Every candidate that steers.
pub fn run(run: &mut Run) -> Result<()> {
    let rounds = run.rounds(ROUNDS);
    let servers = !run.emulated;
    let mut series: Vec<[Vec<f64>; 3]> = vec![Default::default(); run.candidates.len()];
    for round in 0..rounds {
        if run.is_late(round) {
            break;
        }
        for at in run.steering(round) {
            interrupt::check()?;
            let done = one(run.candidates[at].as_mut(), servers);
            let Some(values) = run.judge(at, 0, done)? else { continue };
            series[at].iter_mut().zip(values).for_each(|(series, value)| series.extend(value));
        }
    }
    for at in run.steering(0) {
        let candidate = &run.candidates[at];
        report(&mut run.readings, Of::plain(candidate.name()), candidate.drains_by(), &series[at]);
    }
    Ok(())
}

/// Lost at a zero, lost at a drain, and seconds of a drain; None: not measured.
fn one(candidate: &mut dyn Candidate, servers: bool) -> Result<[Option<f64>; 3]> {
    candidate.load(&few())?;
    let at_zero = if servers { Some(zero(candidate)?) } else { None };
    if candidate.drains_by().is_none() {
        return Ok([at_zero, None, None]);
    }
    let (lost, seconds) = drain(candidate)?;
    Ok([at_zero, Some(lost), Some(seconds)])
}

fn report(readings: &mut Readings, of: Of, drains_by: Option<&str>, samples: &[Vec<f64>; 3]) {
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
    let ((), kept): ((), Kept) = meanwhile(candidate, work, |candidate| {
        thread::sleep(Duration::from_secs(1));
        candidate.zero(NODE, candidate.ways()[0])?;
        thread::sleep(Duration::from_secs(2));
        candidate.restore()?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    Ok(kept.failed as f64)
}

/// Lost requests while a node is drained, and seconds until its last answer.
fn drain(candidate: &mut dyn Candidate) -> Result<(f64, f64)> {
    candidate.prepare_drain()?;
    let work = keep(candidate, &slow(), 48, Duration::from_millis(250));
    let (start, kept): (Duration, Kept) = meanwhile(candidate, work, |candidate| {
        thread::sleep(Duration::from_secs(2));
        let start = now();
        candidate.drain(NODE)?;
        thread::sleep(LIMIT);
        Ok(start)
    })?;
    Ok((kept.failed as f64, kept.last[NODE].saturating_sub(start).as_secs_f64()))
}
