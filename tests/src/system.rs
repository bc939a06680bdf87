//! What the harness asks of the machine: mounts, unique names, patience.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use nix::{
    mount::{MsFlags, mount},
    time::{ClockId, clock_gettime},
};

const BPFFS: &str = "/sys/fs/bpf";

/// A name that no other test on this machine uses at this moment: `sluice-test-<label>-<process>-<number>`.
pub fn unique(label: &str) -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("sluice-test-{label}-{}-{number}", process::id())
}

/// Time since boot on a clock that every process and namespace of this machine shares.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Stretches a time limit on slow machines: an emulated processor sets SLUICE_TEST_SLOWNESS to its factor.
pub fn patience(limit: Duration) -> Duration {
    limit * slowness()
}

/// How often to do what is done again and again for its chances: half as often on slow machines, see [`patience`].
pub fn rounds(number: u64) -> u64 {
    if slowness() > 1 { number.div_ceil(2) } else { number }
}

/// Stretches the pause between connections of a load on slow machines, where one takes the processor much longer than
/// [`patience`] assumes: agents that start meanwhile need their part.
pub fn pace(pause: Duration) -> Duration {
    let slowness = slowness();
    if slowness > 1 { pause * slowness * 3 } else { pause }
}

fn slowness() -> u32 {
    env::var("SLUICE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Asks again and again until `probe` has an answer, for at most `limit` (stretched by [`patience`]).
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let limit = patience(limit);
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            return Err(anyhow!("{what}: not within {limit:?}"));
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Where the cgroup2 hierarchy is mounted; `/sys/fs/cgroup/unified` on hybrid machines.
pub fn cgroup2() -> Result<PathBuf> {
    mount_point_of("cgroup2")?.context("no cgroup2 file system is mounted")
}

/// The bpf file system, mounted now if it was not.
pub fn bpffs() -> Result<PathBuf> {
    static MOUNTING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = MOUNTING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(mounted) = mount_point_of("bpf")? {
        return Ok(mounted);
    }
    let nothing: Option<&str> = None;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), nothing).with_context(|| format!("mounting {BPFFS}"))?;
    Ok(PathBuf::from(BPFFS))
}

/// A program that is built together with the tests: beside the running test, one directory above, or where the
/// environment variable says.
pub fn companion(name: &str, variable: &str) -> Result<PathBuf> {
    if let Some(given) = env::var_os(variable) {
        return Ok(PathBuf::from(given));
    }
    let test = env::current_exe().context("finding the running program")?;
    let places = test.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    let found = places.into_iter().find(|file| file.is_file());
    found.with_context(|| format!("{name} is not beside {}; build it or set {variable}", test.display()))
}

/// The mount point of the first mount of this type whose root is the file system's own.
fn mount_point_of(kind: &str) -> Result<Option<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(find_mount(&table, kind).map(Path::to_path_buf))
}

/// One line: id, parent, device, root, mount point, options, optional fields, "-", type, source, options.
fn find_mount<'a>(table: &'a str, kind: &str) -> Option<&'a Path> {
    table.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        (right.split(' ').next() == Some(kind)).then(|| Path::new(point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
";

    #[test]
    fn finds_cgroup2_on_a_hybrid_machine() {
        assert_eq!(find_mount(TABLE, "cgroup2"), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount(TABLE, "bpf"), None);
    }

    #[test]
    fn names_differ() {
        assert_ne!(unique("a"), unique("a"));
    }
}
