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
    candidates::{Candidate, meanwhile},
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
/// What takes longer to load is zeroed once.
const SLOW: Duration = Duration::from_secs(20);
/// The effect of a command is not waited for longer than this after its end.
const LIMIT: Duration = Duration::from_secs(60);

/// Every candidate with every size.
pub fn run(run: &mut Run) -> Result<()> {
    let sizes = if run.emulated { &SIZES[..2] } else { &SIZES[..] };
    for (turn, services) in sizes.iter().enumerate() {
        run.out.clear();
        let rounds = if *services > 1000 { run.rounds(ROUNDS).min(3) } else { run.rounds(ROUNDS) };
        let order = run.steering(turn);
        for (place, at) in order.iter().copied().enumerate() {
            interrupt::check()?;
            let candidate = run.candidates[at].as_mut();
            let left = run.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                run.readings.note(candidate.name(), "zero", *services, "no time");
                continue;
            }
            // Of what is left, everybody who is still to come has the same part, with this size and with the larger ones.
            let turns = order.len() - place + order.len() * (sizes.len() - turn - 1);
            let plan = Plan { services: *services, rounds, until: Instant::now() + left / turns as u32 };
            let node = &mut run.network.nodes[NODE];
            let done = one(candidate, node, &plan, &mut run.readings);
            run.judge(at, *services, done)?;
            // Nobody keeps the memory of so many services.
            let unloaded = run.candidates[at].load(&many(1)).map(drop);
            run.judge(at, *services, unloaded)?;
        }
    }
    Ok(())
}

struct Plan {
    services: u32,
    rounds: usize,
    /// No further round begins after that.
    until: Instant,
}

fn one(candidate: &mut dyn Candidate, node: &mut Node, plan: &Plan, readings: &mut Readings) -> Result<()> {
    let (services, all) = (plan.services, many(plan.services));
    let name = candidate.name();
    let of = Of { services, ..Of::plain(name) };
    candidate.load(&all[..1])?;
    let empty = memory(candidate)?;
    let load = candidate.load(&all)?;
    readings.number(of, Measure::Load, &[millis(load.cold)]);
    readings.number(of, Measure::LoadRunning, &load.running.map(millis).into_iter().collect::<Vec<_>>());
    let loaded = memory(candidate)?;
    let step = all.len().div_ceil(SAMPLED).max(1);
    let sampled = all.iter().step_by(step).chain(all.last().filter(|_| all.len() > 1));
    let to: Vec<SocketAddr> = sampled.flat_map(|service| candidate.targets(service)).collect();
    let slow = load.cold > SLOW;
    if slow {
        let words = format!("loading takes {:.0} s: one sample, by the usual means", load.cold.as_secs_f64());
        readings.note(name, "zero", services, words);
    }
    let mut lost = 0;
    for way in candidate.ways().iter().take(if slow { 1 } else { usize::MAX }) {
        let of = Of { way, ..of };
        let (mut last, mut command, mut gap) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..if slow { 1 } else { plan.rounds } {
            interrupt::check()?;
            // What takes so long to load has its one sample.
            if !slow && Instant::now() > plan.until {
                readings.note(name, "zero", services, format!("{way}: no time for round {round} and later ones"));
                break;
            }
            let zero = zero(candidate, node, way, &to)?;
            last.push(millis(zero.last));
            command.push(millis(zero.command));
            gap.push(millis(zero.gap));
            lost += zero.lost;
            if slow {
                break;
            }
            candidate.restore()?;
            if zero.command > LIMIT / 4 {
                break;
            }
        }
        readings.number(of, Measure::LastConnection, &last);
        readings.number(of, Measure::Command, &command);
        readings.number(of, Measure::Gap, &gap);
    }
    if services > 1 {
        let unloaded = if candidate.memory_is_coarse() {
            let full = memory(candidate)?;
            candidate.load(&all[..1])?;
            full.saturating_sub(memory(candidate)?)
        } else {
            loaded.saturating_sub(empty)
        };
        remember(readings, of, loaded, loaded.saturating_sub(empty), unloaded);
    }
    if lost > 0 {
        readings.note(name, "zero", services, format!("{lost} new connections failed meanwhile"));
    }
    Ok(())
}

/// Memory for each service, unless it does not go when the services go: then it was for something else too.
fn remember(readings: &mut Readings, of: Of, total: u64, growth: u64, shrinkage: u64) {
    if growth.abs_diff(shrinkage) > growth / 4 {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (growth, shrinkage) = (mebibytes(growth), mebibytes(shrinkage));
        let words =
            format!("memory is not known: {growth:.1} MiB come with the services, {shrinkage:.1} MiB go with them");
        return readings.note(of.who, "zero", of.services, words);
    }
    readings.number(of, Measure::Memory, &[total as f64 / f64::from(of.services)]);
    readings.number(of, Measure::MemoryGrowth, &[growth as f64 / f64::from(of.services - 1)]);
}

/// The kernel gives memory back a moment later, and keeps connections that have ended for a second.
fn memory(candidate: &mut dyn Candidate) -> Result<u64> {
    if candidate.memory_is_coarse() {
        thread::sleep(Duration::from_millis(1500));
    }
    candidate.memory()
}

#[derive(Debug, Default)]
struct Zero {
    last: Duration,
    command: Duration,
    gap: Duration,
    lost: u64,
}

fn zero(candidate: &mut dyn Candidate, node: &mut Node, way: &str, to: &[SocketAddr]) -> Result<Zero> {
    let open = Open { to: to.to_vec(), threads: THREADS, time: LIMIT * 10, most: u64::MAX, pause: PAUSE };
    let (zero, opened): (Zero, Opened) = meanwhile(candidate, Work::Open(open), |candidate| {
        // Warm before the pauses are looked at.
        thread::sleep(BEFORE);
        let first = node.seen()?.accepted;
        thread::sleep(BEFORE);
        let seen = node.seen()?;
        ensure!(seen.accepted > first + 1, "no connections come to the node");
        let start = now();
        candidate.zero(NODE, way)?;
        let command = now() - start;
        // Before the command: then it stopped the very next one.
        let last = last_connection(node)?.saturating_sub(start);
        Ok(Zero { last, command, gap: seen.pause, lost: 0 })
    })?;
    Ok(Zero { lost: opened.failed.values().sum(), ..zero })
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
