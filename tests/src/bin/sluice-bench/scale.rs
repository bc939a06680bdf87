//! 10,000 services of ten backends: how long they take to program, and how much memory.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::interrupt;

use crate::{
    Scale,
    bed::{Steered, document},
    bpf,
    report::{Figure, Report, Samples, Target, Unit},
};

const GROUP: &str = "10,000 services of ten backends";
const SERVICES: u32 = 10_000;
const BACKENDS: u32 = 10;

/// Fills an agent, and looks at it.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let documents = document(SERVICES, BACKENDS);
    let (mut times, mut work) = (Samples::default(), Samples::default());
    for _ in 0..scale.of(5) {
        interrupt::check()?;
        let bed = Steered::empty()?;
        let (start, before) = (Instant::now(), processor_time(&bed)?);
        bed.apply(&documents)?;
        times.push(millis(start.elapsed()));
        work.push(millis(processor_time(&bed)? - before));
    }
    let name = "from empty: POST /v1/apply of YAML until the answer";
    let size = format!("{:.1} MB", documents.len() as f64 / 1e6);
    report.add(Figure::median(GROUP, name, &times, Unit::Milliseconds).target(Target::AtMost(2000.0)).note(size));
    report.add(Figure::median(GROUP, "the agent's processor time for it", &work, Unit::Milliseconds));

    let mut bed = Steered::empty()?;
    let idle = resident(&bed)?;
    bed.apply(&documents)?;
    weights(&bed, scale.of(300), report)?;
    report.add(Figure::new(GROUP, "memory of the agent, without services", idle, Unit::Mebibytes));
    let filled = Figure::new(GROUP, "memory of the agent, after apply", resident(&bed)?, Unit::Mebibytes);
    report.add(filled.target(Target::AtMost(60.0)));
    let tables = bpf::memory_of_maps(bed.agent.bpffs())? as f64 / MIB;
    report.add(Figure::new(GROUP, "memory of the kernel's tables, for 131,072 backends", tables, Unit::Mebibytes));

    restart(&mut bed, "restart of the agent, kernel filled: until ready", report)?;
    let after = Figure::new(GROUP, "memory of the agent, after a restart", resident(&bed)?, Unit::Mebibytes);
    report.add(after.target(Target::AtMost(60.0)));
    bed.agent.terminate()?;
    let output = bed.agent.cli(&["uninstall", "--keep-state", "--bpffs", &bed.agent.bpffs().to_string_lossy()])?;
    ensure!(output.status.success(), "uninstalling: {}", String::from_utf8_lossy(&output.stderr));
    begin(&mut bed, "start with a filled store, kernel empty: until ready", report)
}

fn restart(bed: &mut Steered, name: &str, report: &mut Report) -> Result<()> {
    bed.agent.terminate()?;
    begin(bed, name, report)
}

fn begin(bed: &mut Steered, name: &str, report: &mut Report) -> Result<()> {
    let start = Instant::now();
    bed.agent.start()?;
    report.add(Figure::new(GROUP, name, millis(start.elapsed()), Unit::Milliseconds));
    Ok(())
}

/// One weight after the other, of services all over the range.
fn weights(bed: &Steered, rounds: u32, report: &mut Report) -> Result<()> {
    let mut times = Samples::default();
    for round in 0..rounds {
        interrupt::check()?;
        let path = format!("/v1/services/s{}/backends/b0", round * 31 % SERVICES);
        let start = Instant::now();
        let answer = bed.agent.patch(&path, &json!({"weight": 5 + round % 7}))?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
    }
    let figure = Figure::median(GROUP, "one weight change, request to answer", &times, Unit::Microseconds);
    report.add(figure.target(Target::AtMost(2000.0)));
    let tail = times.quantile(0.99);
    report.add(Figure::new(GROUP, "one weight change, 99th percentile", tail, Unit::Microseconds));
    Ok(())
}

/// Bytes of a mebibyte.
pub const MIB: f64 = 1024.0 * 1024.0;

/// Resident memory of the agent at rest, MiB: it gives back what it needed for its work a moment after.
pub fn resident(bed: &Steered) -> Result<f64> {
    thread::sleep(Duration::from_secs(3));
    let id = bed.agent.id().context("the agent does not run")?;
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("reading the agent's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse().context("reading VmRSS")?;
    Ok(kib / 1024.0)
}

/// What the agent has had of the processors so far, all threads together. The kernel counts it in hundredths of a second.
pub fn processor_time(bed: &Steered) -> Result<Duration> {
    let id = bed.agent.id().context("the agent does not run")?;
    let text = fs::read_to_string(format!("/proc/{id}/stat")).context("reading the agent's processor time")?;
    // After the name in parentheses: the state is field 3, utime and stime are 14 and 15.
    let (_, rest) = text.rsplit_once(") ").context("understanding /proc/PID/stat")?;
    let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}

pub fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
