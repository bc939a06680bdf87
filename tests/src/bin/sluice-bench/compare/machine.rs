//! What the machine says of itself: the time of its processors, and memory.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// Length of a tick of /proc/stat: USER_HZ is 100 on every architecture that Linux has kept.
const TICK: Duration = Duration::from_millis(10);

/// Time that all processors together have worked since boot: user, nice, system, interrupts and soft interrupts.
pub fn busy() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let line = text.lines().next().context("an empty /proc/stat")?;
    let ticks: Vec<u32> = line.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user nice system idle iowait irq softirq
    let sum: u32 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
    Ok(TICK * sum)
}

/// How many processors there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Bytes of a process, what it shares counted in proportion (Pss).
pub fn memory_of(process: u32) -> Result<u64> {
    let file = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    kibibytes(&text, &["Pss:"])
}

/// Bytes of a process and its children.
pub fn memory_of_group(process: u32) -> Result<u64> {
    let children = children(process)?.into_iter().filter_map(|child| memory_of(child).ok()).sum::<u64>();
    Ok(memory_of(process)? + children)
}

/// The children of a process.
pub fn children(process: u32) -> Result<Vec<u32>> {
    let file = format!("/proc/{process}/task/{process}/children");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// Bytes that the kernel has taken for itself: slabs that it cannot give back, per-CPU memory and vmalloc.
pub fn kernel_memory() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    kibibytes(&text, &["SUnreclaim:", "Percpu:", "VmallocUsed:"])
}

fn kibibytes(text: &str, names: &[&str]) -> Result<u64> {
    let mut sum = 0;
    for name in names {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        let value: u64 = value.and_then(|value| value.parse().ok()).with_context(|| format!("no {name}"))?;
        sum += value * 1024;
    }
    Ok(sum)
}
