//! The clocks, and how they translate.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    sync::LazyLock,
};

use jiff::{SignedDuration, Timestamp};
use nix::time::{ClockId, clock_getres, clock_gettime};

use crate::model::Stamp;

/// CLOCK_MONOTONIC, ns: the clock of every time that the programs keep.
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or(0)
}

/// The wall-clock time of a CLOCK_MONOTONIC time, by the present difference of the two clocks.
pub fn wall(monotonic: u64) -> Timestamp {
    let ago = i64::try_from(monotonic_ns().saturating_sub(monotonic)).unwrap_or(i64::MAX);
    Timestamp::now().checked_sub(SignedDuration::from_nanos(ago)).unwrap_or(Timestamp::MIN)
}

/// Now, in a form that can be saved.
pub fn stamp() -> Stamp {
    // If another version of the library hashes otherwise, it is as after a reboot: the wall clock counts.
    static BOOT: LazyLock<u64> = LazyLock::new(|| {
        let mut hasher = DefaultHasher::new();
        boot_id().hash(&mut hasher);
        hasher.finish()
    });
    let ns = clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(|time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
        .unwrap_or(0);
    Stamp { at: Timestamp::now(), boot: *BOOT, ns }
}

/// Jiffies a second: the coarse clocks move with them (`TICK_NSEC`).
pub fn hz() -> u32 {
    let tick = clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map(|tick| tick.tv_nsec()).unwrap_or(0);
    // CONFIG_HZ has a handful of values from 100 to 1000.
    u32::try_from(1_000_000_000 / tick.max(1)).ok().filter(|hz| (24..=1200).contains(hz)).unwrap_or(250)
}

/// Identity of this boot of the host: CLOCK_MONOTONIC times of another boot mean nothing.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tick_is_one_that_kernels_are_built_with() {
        assert!([24, 48, 64, 100, 128, 200, 250, 256, 300, 500, 512, 1000, 1024].contains(&hz()), "{}", hz());
    }
}
