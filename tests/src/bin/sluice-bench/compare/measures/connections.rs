//! New connections: how many a second, how long each takes, and how much work each is for the whole machine.

use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::interrupt;

use crate::compare::{
    Run,
    candidates::Candidate,
    load::{Open, Opened},
    machine::busy,
    plain,
    readings::{Measure, Of},
};

const ROUNDS: usize = 7;
const TIME: Duration = Duration::from_secs(2);
/// Clients that each open one connection after the other.
const THREADS: u64 = 4;

/// Samples of one candidate.
#[derive(Clone, Debug, Default)]
struct Series {
    rate: Vec<f64>,
    micros: [Vec<f64>; 3],
    work: Vec<f64>,
}

/// Rounds with every candidate in turn; the first one only warms up.
pub fn run(run: &mut Run) -> Result<()> {
    run.load_few()?;
    let mut series = vec![Series::default(); run.candidates.len()];
    for round in 0..=run.rounds(ROUNDS) {
        if run.is_late(round) {
            break;
        }
        for at in run.order(round) {
            interrupt::check()?;
            let done = one(run.candidates[at].as_mut());
            let Some((opened, work)) = run.judge(at, 0, done)? else { continue };
            if round > 0 {
                let series = &mut series[at];
                series.rate.push(opened.rate);
                series.work.push(work.as_secs_f64() * 1e6 / opened.answered as f64);
                let micros = opened.micros.map(|micros| micros.unwrap_or(f64::NAN));
                series.micros.iter_mut().zip(micros).for_each(|(series, micros)| series.push(micros));
            }
        }
    }
    // Some of the rounds are no measurement.
    run.out.iter().for_each(|at| series[*at] = Series::default());
    for (who, series) in run.readings.who.clone().iter().zip(series) {
        let of = Of::plain(who);
        run.readings.number(of, Measure::Rate, &series.rate);
        let measures = [Measure::ConnectMedian, Measure::Connect99, Measure::Connect999];
        for (measure, micros) in measures.into_iter().zip(&series.micros) {
            run.readings.number(of, measure, micros);
        }
        run.readings.number(of, Measure::ConnectWork, &series.work);
    }
    Ok(())
}

fn one(candidate: &mut dyn Candidate) -> Result<(Opened, Duration)> {
    let to = candidate.targets(&plain());
    let open = Open { to, threads: THREADS, time: TIME, most: u64::MAX, pause: Duration::ZERO };
    let before = busy()?;
    let opened = candidate.host().open(open)?;
    let work = busy()? - before;
    ensure!(opened.failed.is_empty(), "{:?}", opened.failed);
    Ok((opened, work))
}
