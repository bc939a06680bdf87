//! What warm-up and probes cost the agent.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Steered, document, document_with},
    report::{Figure, Report, Target, Unit},
    scale::processor_time,
};

const SERVICES: u32 = 1000;
const BACKENDS: u32 = 10;
/// What an apply leaves to do afterwards.
const SETTLE: Duration = Duration::from_secs(5);

/// A cold backend in each of 1,000 services, and then 10,000 backends that are probed.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let time = Duration::from_secs(scale.of(20).into());
    let bed = Steered::empty()?;
    bed.apply(&document(SERVICES, BACKENDS - 1))?;
    bed.apply(&document_with(SERVICES, BACKENDS, "warmup: {duration: 120s}"))?;
    let share = share(&bed, time)?;
    let group = "1,000 services of ten backends, one cold in each";
    let figure =
        Figure::new(group, "the agent's share of one processor while they warm up in 120 s", share, Unit::Ratio);
    report.add(figure.target(Target::AtMost(0.05)));
    drop(bed);

    let bed = Steered::probing()?;
    bed.apply(&document_with(SERVICES, BACKENDS, "readiness: {kind: tcp, period: 5s}"))?;
    let share = self::share(&bed, time)?;
    let figure = Figure::new(
        "10,000 backends probed",
        "by tcp every 5 s: the agent's share of one processor",
        share,
        Unit::Ratio,
    );
    report.add(figure.target(Target::AtMost(0.15)));
    Ok(())
}

fn share(bed: &Steered, time: Duration) -> Result<f64> {
    thread::sleep(SETTLE);
    interrupt::check()?;
    let (start, before) = (Instant::now(), processor_time(bed)?);
    thread::sleep(time);
    let work = processor_time(bed)? - before;
    Ok(work.as_secs_f64() / start.elapsed().as_secs_f64())
}
