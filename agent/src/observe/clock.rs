//! The clocks, and how they translate.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC, ns: the clock of every time that the kernel side keeps.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or(0)
}

/// The wall-clock time of a monotonic one, by the difference that the two clocks have now.
pub fn wall(monotonic: u64) -> Timestamp {
    let ago = i64::try_from(monotonic_ns().saturating_sub(monotonic)).unwrap_or(i64::MAX);
    Timestamp::now().checked_sub(SignedDuration::from_nanos(ago)).unwrap_or(Timestamp::MIN)
}

/// Identity of this boot of the host: monotonic times of another one mean nothing.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}
