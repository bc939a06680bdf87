//! A point in time that means the same after a restart, and that nobody moves by setting the clock.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// When something began, on two clocks. Within one boot of the host the second one counts: it runs on while the host is
/// suspended and cannot be set. After a reboot only the wall clock is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    pub at: Timestamp,
    /// Tells boots of the host apart.
    pub boot: u64,
    /// CLOCK_BOOTTIME, ns.
    pub ns: u64,
}

impl Stamp {
    /// Longer ago than anything.
    pub const NEVER: Self = Self { at: Timestamp::UNIX_EPOCH, boot: 0, ns: 0 };

    /// Time from here to `now`; none when `now` is earlier.
    pub fn until(&self, now: &Self) -> Duration {
        if self.boot == now.boot {
            return Duration::from_nanos(now.ns.saturating_sub(self.ns));
        }
        Duration::try_from(now.at.duration_since(self.at)).unwrap_or(Duration::ZERO)
    }

    /// What is left at `now` of something that lasts `whole`: all of it when clocks disagree.
    pub fn left(&self, whole: Duration, now: &Self) -> Duration {
        whole.saturating_sub(self.until(now))
    }

    /// The point this long before.
    pub fn before(&self, by: Duration) -> Self {
        let at = self.at.checked_sub(by).unwrap_or(Timestamp::MIN);
        let ns = u64::try_from(by.as_nanos()).ok().and_then(|by| self.ns.checked_sub(by));
        match ns {
            Some(ns) => Self { at, boot: self.boot, ns },
            // Before this boot: only the wall clock reaches back there.
            None => Self { at, boot: !self.boot, ns: 0 },
        }
    }

    /// The point this long after.
    pub fn after(&self, by: Duration) -> Self {
        let at = self.at.checked_add(by).unwrap_or(Timestamp::MAX);
        let ns = self.ns.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX));
        Self { at, boot: self.boot, ns }
    }

    /// A point for tests: this many milliseconds after an arbitrary boot.
    #[cfg(test)]
    pub fn test(millis: u64) -> Self {
        let at = Timestamp::UNIX_EPOCH + Duration::from_millis(1_000_000 + millis);
        Self { at, boot: 7, ns: (1_000_000 + millis) * 1_000_000 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_the_clock_changes_nothing_within_a_boot() {
        let (began, now) = (Stamp::test(0), Stamp::test(5_000));
        let set = Stamp { at: now.at - Duration::from_secs(86_400), ..now };
        assert_eq!(began.until(&set), Duration::from_secs(5));
        assert_eq!(now.until(&began), Duration::ZERO);
    }

    #[test]
    fn after_a_reboot_the_wall_clock_counts() {
        let (began, now) = (Stamp::test(0), Stamp::test(5_000));
        let rebooted = Stamp { boot: 8, ns: 3, ..now };
        assert_eq!(began.until(&rebooted), Duration::from_secs(5));
        assert_eq!(Stamp { at: now.at + Duration::from_secs(60), ..began }.until(&rebooted), Duration::ZERO);
    }

    #[test]
    fn a_point_before_the_boot_is_found_by_the_wall_clock() {
        let now = Stamp::test(0);
        for by in [1, 2_000_000].map(Duration::from_millis) {
            assert_eq!(now.before(by).until(&now), by);
        }
        assert_eq!(now.left(Duration::from_secs(3), &now.after(Duration::from_secs(1))), Duration::from_secs(2));
    }
}
