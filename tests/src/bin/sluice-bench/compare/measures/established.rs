//! Connections that are there: requests by wrk over 1 and 1,000 of them, and a stream by iperf3.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;
use sluice_tests::{interrupt, program};
use tempfile::NamedTempFile;

use crate::compare::{
    Run,
    candidates::Candidate,
    machine::busy,
    readings::{Measure, Of},
    stream, web,
};

const ROUNDS: usize = 4;
const SECONDS: &str = "2";
/// wrk without anything that steers: its threads go to the nodes in turn.
const SPREAD: &str = include_str!("../peers/spread.lua");

/// Requests a second, and microseconds: median and 99th percentile.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Requests {
    rate: f64,
    median: f64,
    tail: f64,
}

/// Rounds with every candidate in turn; the first one only warms up.
pub fn run(run: &mut Run) -> Result<()> {
    if run.emulated {
        println!("  left out: an emulated processor's rates say little");
        return Ok(());
    }
    run.load_few()?;
    let spread = NamedTempFile::new().context("making a file")?;
    std::fs::write(spread.path(), SPREAD).context("writing spread.lua")?;
    let script = spread.path().to_string_lossy().into_owned();
    let mut series: Vec<[Vec<f64>; 8]> = vec![Default::default(); run.candidates.len()];
    for round in 0..=run.rounds(ROUNDS) {
        if run.is_late(round) {
            break;
        }
        for at in run.order(round) {
            interrupt::check()?;
            let done = all(run.candidates[at].as_mut(), &script);
            let Some(values) = run.judge(at, 0, done)? else { continue };
            if round > 0 {
                series[at].iter_mut().zip(values).for_each(|(series, value)| series.push(value));
            }
        }
    }
    // Some of the rounds are no measurement.
    run.out.iter().for_each(|at| series[*at] = Default::default());
    const MEASURES: [Measure; 8] = [
        Measure::OneRate,
        Measure::OneMedian,
        Measure::One99,
        Measure::ManyRate,
        Measure::ManyMedian,
        Measure::Many99,
        Measure::Throughput,
        Measure::StreamWork,
    ];
    for (who, series) in run.readings.who.clone().iter().zip(series) {
        for (measure, samples) in MEASURES.into_iter().zip(series) {
            run.readings.number(Of::plain(who), measure, &samples);
        }
    }
    Ok(())
}

/// Values in the order of the measures.
fn all(candidate: &mut dyn Candidate, script: &str) -> Result<[f64; 8]> {
    let one = wrk(candidate, &["-t1", "-c1"], None)?;
    let many = wrk(candidate, &["-t3", "-c1000"], Some(script))?;
    let (throughput, work) = iperf(candidate)?;
    Ok([one.rate, one.median, one.tail, many.rate, many.median, many.tail, throughput, work])
}

fn wrk(candidate: &mut dyn Candidate, words: &[&str], script: Option<&str>) -> Result<Requests> {
    let targets = candidate.targets(&web());
    let first: SocketAddr = *targets.first().context("no target")?;
    let (url, time) = (format!("http://{first}/"), format!("-d{SECONDS}s"));
    let mut words = [&["wrk", "--latency", &time], words].concat();
    if let Some(script) = script.filter(|_| targets.len() > 1) {
        words.extend(["-s", script]);
    }
    words.push(&url);
    let host = candidate.host();
    let text = program::output(Some(&host.cgroup), Some(&host.namespace), &words)?;
    read_wrk(&text).with_context(|| format!("reading what wrk says: {text}"))
}

/// The lines "50%  123.00us", "99%  1.20ms" and "Requests/sec:  4567.8".
fn read_wrk(text: &str) -> Option<Requests> {
    let after = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
    let rate = after("Requests/sec:")?.parse().ok()?;
    Some(Requests { rate, median: micros(after("50%")?)?, tail: micros(after("99%")?)? })
}

fn micros(text: &str) -> Option<f64> {
    let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
    units.iter().find_map(|(unit, factor)| Some(text.strip_suffix(unit)?.parse::<f64>().ok()? * factor))
}

/// Gigabits a second, and milliseconds of processors for a gigabyte.
fn iperf(candidate: &mut dyn Candidate) -> Result<(f64, f64)> {
    let at = *candidate.targets(&stream()).first().context("no target")?;
    let (ip, port) = (at.ip().to_string(), at.port().to_string());
    let words = ["iperf3", "--client", &ip, "--port", &port, "--time", SECONDS, "--json"];
    let host = candidate.host();
    // A server that has just ended a test may be busy for a moment. Only the attempt that counts is measured.
    let (mut said, mut before) = (Err(anyhow::anyhow!("not tried")), busy()?);
    for _ in 0..5 {
        before = busy()?;
        said = program::output(Some(&host.cgroup), Some(&host.namespace), &words);
        if said.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let work = busy()? - before;
    let said: Value = serde_json::from_str(&said?).context("reading what iperf3 says")?;
    let received = &said["end"]["sum_received"];
    let bits = received["bits_per_second"].as_f64().context("no bits_per_second")?;
    let bytes = received["bytes"].as_f64().context("no bytes")?;
    Ok((bits / 1e9, work.as_secs_f64() * 1e3 / (bytes / 1e9)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_wrk() {
        let text = "  Latency Distribution\n     50%  123.00us\n     75%    1.00ms\n     99%    1.20ms\n\
                    Requests/sec:   4567.80\n";
        assert_eq!(read_wrk(text), Some(Requests { rate: 4567.8, median: 123.0, tail: 1200.0 }));
    }
}
