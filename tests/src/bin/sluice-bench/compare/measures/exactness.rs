//! How exactly a light backend gets its share of 1,000 connections.

use std::time::Duration;

use anyhow::{Result, ensure};
use sluice_tests::interrupt;

use crate::compare::{
    Run,
    candidates::Candidate,
    load::Open,
    readings::{Measure, Of},
    setup::{PLAIN, Service},
};

const ROUNDS: usize = 12;
const CONNECTIONS: u64 = 1000;
const THREADS: u64 = 2;

/// Two mixes, each some times over.
pub fn run(run: &mut Run) -> Result<()> {
    for (measure, weights) in [(Measure::Share5, [95, 5]), (Measure::Share01, [999, 1])] {
        let service = Service::weighted(0, PLAIN, &weights);
        let desired = f64::from(weights[1]) * 100.0 / f64::from(weights[0] + weights[1]);
        let rounds = run.rounds(ROUNDS);
        if run.is_late(0) {
            break;
        }
        // Who steers nothing has no shares.
        for at in run.steering(0) {
            let errors = one(run.candidates[at].as_mut(), &service, desired, rounds);
            let Some(errors) = run.judge(at, 1, errors)? else { continue };
            // The mean: of a small share the median error of few connections hides how far off the others are.
            run.readings.mean(Of::plain(run.candidates[at].name()), measure, &errors);
        }
    }
    Ok(())
}

fn one(candidate: &mut dyn Candidate, service: &Service, desired: f64, rounds: usize) -> Result<Vec<f64>> {
    candidate.load(std::slice::from_ref(service))?;
    let to = candidate.targets(service);
    let mut errors = Vec::new();
    for _ in 0..rounds {
        interrupt::check()?;
        let (time, most) = (Duration::from_secs(60), CONNECTIONS / THREADS);
        let open = Open { to: to.clone(), threads: THREADS, time, most, pause: Duration::ZERO };
        let opened = candidate.host().open(open)?;
        ensure!(opened.answered == CONNECTIONS, "{} answers, {:?}", opened.answered, opened.failed);
        let share = opened.nodes[1] as f64 * 100.0 / opened.answered as f64;
        errors.push((share - desired).abs());
    }
    Ok(errors)
}
