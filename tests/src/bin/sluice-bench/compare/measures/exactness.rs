//! How exactly a light backend gets its share of 1,000 connections.

use std::time::Duration;

use anyhow::Result;
use sluice_tests::interrupt;

use crate::compare::{
    Run,
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
        // Who steers nothing has no shares.
        for candidate in run.candidates.iter_mut().filter(|candidate| !candidate.ways().is_empty()) {
            interrupt::check()?;
            candidate.load(std::slice::from_ref(&service))?;
            let to = candidate.targets(&service);
            let mut errors = Vec::new();
            for _ in 0..rounds {
                let (time, most) = (Duration::from_secs(60), CONNECTIONS / THREADS);
                let open = Open { to: to.clone(), threads: THREADS, time, most, pause: Duration::ZERO };
                let opened = candidate.host().open(open)?;
                let share = opened.nodes[1] as f64 * 100.0 / opened.answered as f64;
                errors.push((share - desired).abs());
            }
            // The mean: of a small share the median error of few connections hides how far off the others are.
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            run.readings.mean(Of::plain(candidate.name()), measure, mean, &errors);
        }
    }
    Ok(())
}
