//! From the command to the last new connection on a node, under load, with few and many services that all have a backend
//! there. On the way: how long it takes to load that many services, and how much memory they need.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sluice_tests::{interrupt, system::now};

use crate::compare::{
    Run,
    candidates::Candidate,
    load::{Open, Opened, Work},
    readings::{Measure, Of, Readings},
    setup::many,
    topology::Node,
};

const SIZES: [u32; 3] = [1, 1000, 10_000];
const ROUNDS: usize = 5;
/// The node that is zeroed.
const NODE: usize = 0;
/// Services that get connections, the first and the last among them.
const SAMPLED: usize = 100;
const THREADS: u64 = 2;
/// After each connection of each thread.
const PAUSE: Duration = Duration::from_micros(500);
/// Before the command.
const BEFORE: Duration = Duration::from_millis(400);
/// A node without connections for this long gets none any more.
const QUIET: Duration = Duration::from_millis(600);
/// The effect of a command is not waited for longer than this after its end; what takes longer to load is zeroed once.
const LIMIT: Duration = Duration::from_secs(60);

/// Every candidate with every size.
pub fn run(run: &mut Run) -> Result<()> {
    let sizes = if run.emulated { &SIZES[..2] } else { &SIZES[..] };
    for services in sizes {
        let rounds = if *services > 1000 { run.rounds(ROUNDS).min(3) } else { run.rounds(ROUNDS) };
        for candidate in &mut run.candidates {
            interrupt::check()?;
            if candidate.ways().is_empty() {
                continue;
            }
            let name = candidate.name();
            let node = &mut run.network.nodes[NODE];
            let measured = one(candidate.as_mut(), node, *services, rounds, &mut run.readings);
            if let Err(error) = measured {
                let of = Of { services: *services, ..Of::plain(name) };
                run.readings.words(of, Measure::Note, format!("{error:#}"));
            }
            // Nobody keeps the memory of so many services.
            candidate.load(&many(1))?;
        }
    }
    Ok(())
}

fn one(
    candidate: &mut dyn Candidate,
    node: &mut Node,
    services: u32,
    rounds: usize,
    readings: &mut Readings,
) -> Result<()> {
    let all = many(services);
    let name = candidate.name();
    let of = Of { services, ..Of::plain(name) };
    candidate.load(&all[..1])?;
    let empty = candidate.memory()?;
    let load = candidate.load(&all)?;
    readings.number(of, Measure::Load, &[millis(load)]);
    if services > 1 {
        let memory = candidate.memory()?.saturating_sub(empty);
        readings.number(of, Measure::Memory, &[memory as f64 / f64::from(services - 1)]);
    }
    let step = all.len().div_ceil(SAMPLED).max(1);
    let sampled = all.iter().step_by(step).chain(all.last().filter(|_| all.len() > 1));
    let to: Vec<SocketAddr> = sampled.flat_map(|service| candidate.targets(service)).collect();
    let slow = load > LIMIT;
    if slow {
        let words = format!("loading takes {:.0} s: one sample, by the usual means", load.as_secs_f64());
        readings.words(of, Measure::Note, words);
    }
    let mut lost = 0;
    for way in candidate.ways().iter().take(if slow { 1 } else { usize::MAX }) {
        let of = Of { way, ..of };
        let (mut last, mut command, mut gap) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            interrupt::check()?;
            let zero = zero(candidate, node, way, &to, !slow)?;
            last.push(millis(zero.last));
            command.push(millis(zero.command));
            gap.push(millis(zero.gap));
            lost += zero.lost;
            if slow || zero.command > LIMIT / 4 {
                break;
            }
        }
        readings.number(of, Measure::LastConnection, &last);
        readings.number(of, Measure::Command, &command);
        readings.number(of, Measure::Gap, &gap);
    }
    ensure!(lost == 0, "{lost} new connections failed meanwhile");
    Ok(())
}

#[derive(Debug, Default)]
struct Zero {
    last: Duration,
    command: Duration,
    gap: Duration,
    lost: u64,
}

fn zero(candidate: &mut dyn Candidate, node: &mut Node, way: &str, to: &[SocketAddr], restore: bool) -> Result<Zero> {
    let (time, pause) = (LIMIT * 10, PAUSE);
    candidate.host().begin(Work::Open(Open { to: to.to_vec(), threads: THREADS, time, most: u64::MAX, pause }))?;
    // Warm before the gap is looked at.
    thread::sleep(BEFORE);
    let first = node.seen()?.accepted;
    thread::sleep(BEFORE);
    let before = node.seen()?.accepted - first;
    ensure!(before > 0, "no connection comes to the node");
    let start = now();
    let zeroed = candidate.zero(NODE, way);
    let command = now() - start;
    let last = zeroed.and_then(|()| last_connection(node));
    let opened: Opened = candidate.host().end()?;
    if restore {
        candidate.restore()?;
    }
    let lost = opened.failed.values().sum();
    // Before the command: then it stopped the very next one.
    Ok(Zero { last: last?.saturating_sub(start), command, gap: BEFORE / before as u32, lost })
}

fn last_connection(node: &mut Node) -> Result<Duration> {
    let start = Instant::now();
    loop {
        let last = node.seen()?.last;
        if now().saturating_sub(last) > QUIET {
            return Ok(last);
        }
        ensure!(start.elapsed() < LIMIT, "connections still come after {:.0} s", LIMIT.as_secs_f64());
        thread::sleep(Duration::from_millis(20));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
