//! Failure streaks of backends, as the programs notice them, and the signals that tell the agent.
//!
//! An answer ends a streak, so that a streak says nothing of a backend that nobody calls. Streaks are kept for every
//! backend; signals are sent for those whose limits the agent has set.

use crate::tables::CONNECT_BUCKETS;

/// Entry of STREAKS, by backend id. It has a cache line of its own, which establishments only read while there are no
/// failures.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureStreak {
    /// Written by the agent: a streak of failures that reaches this, or a multiple of it, is a signal. 0: no signal of
    /// any kind.
    pub failures_limit: u32,
    /// Written by the agent: the same for early resets. 0: none of this kind.
    pub resets_limit: u32,
    /// Written by the agent: [`MEASURED`].
    pub flags: u32,
    /// Failures since a connection was last established: connects that were refused, timed out or found the backend
    /// unreachable, and every SYN that had to be sent again. A caller that gives up is no failure by itself.
    pub failures: u32,
    /// Established connections in a row that ended by a reset from the backend before it had sent a byte.
    pub early_resets: u32,
    pub padding: u32,
    /// CLOCK_MONOTONIC ns since when the backend has left SYNs unanswered; 0 once one is answered, if only by a
    /// refusal. It is the pick of the earliest connection that had to resend its SYN; if something was answered after
    /// that pick, the time of the resending.
    pub unanswered_since: u64,
    /// CLOCK_MONOTONIC ns of the last signal.
    pub signalled: u64,
    /// SYNs that had to be sent again; only grows while the id is in use.
    pub unanswered: u64,
    /// As `early_resets`, but only grows while the id is in use.
    pub early_resets_total: u64,
    /// Written by the agent: CLOCK_MONOTONIC ns of the last restart of the streaks. Connections picked before do not
    /// count.
    pub restarted: u64,
}

/// Entry of TURNS, by backend id: turn times, while they are measured.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    /// Bounds as those of [`crate::tables::Counters::connect_time`].
    pub buckets: [u32; CONNECT_BUCKETS],
    /// Sum of all, us.
    pub sum: u64,
    pub count: u64,
}

/// In [`FailureStreak::flags`]: the turn time of this backend is measured.
pub const MEASURED: u32 = 1;

/// Least time between two signals of a backend that goes on failing, in ns. The first time that a streak reaches its
/// limit is always signalled.
pub const SIGNAL_INTERVAL: u64 = 200_000_000;

/// What a signal is about.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKind {
    /// The streak of failures reached its limit.
    Failures = 0,
    /// A SYN had to be sent again.
    Unanswered = 1,
    /// The streak of early resets reached its limit.
    EarlyResets = 2,
}

/// Record of SIGNALS: the streaks at that moment. `kind` is what came last; the figures decide.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    pub backend_id: u32,
    /// A [`SignalKind`].
    pub kind: u32,
    pub failures: u32,
    pub early_resets: u32,
    pub unanswered_since: u64,
    /// CLOCK_MONOTONIC ns.
    pub time: u64,
}

/// Bytes of SIGNALS: room for 6,500 signals, so that 5,000 backends may fail at once.
pub const SIGNALS_BYTES: u32 = 256 * 1024;

impl FailureStreak {
    /// Whether a streak that just grew to `streak` is worth a signal now.
    #[inline(always)]
    pub const fn is_due(&self, streak: u32, limit: u32, now: u64) -> bool {
        self.failures_limit != 0
            && limit != 0
            && streak.is_multiple_of(limit)
            && (streak == limit || now.wrapping_sub(self.signalled) >= SIGNAL_INTERVAL)
    }
}

impl SignalKind {
    pub const ALL: [Self; 3] = [Self::Failures, Self::Unanswered, Self::EarlyResets];
}

impl Signal {
    /// `None` for a kind of another version.
    pub fn kind(&self) -> Option<SignalKind> {
        SignalKind::ALL.into_iter().find(|kind| *kind as u32 == self.kind)
    }
}

const _: () = {
    assert!(size_of::<FailureStreak>() == 64);
    assert!(size_of::<Signal>() == 32);
    assert!(size_of::<Turns>() == 80);
    assert!(SIGNALS_BYTES.is_power_of_two());
};

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    const NOW: u64 = 10_000_000_000;

    #[test]
    fn a_storm_of_failures_costs_few_signals() {
        let mut backend = FailureStreak { failures_limit: 3, ..FailureStreak::default() };
        let mut signals = Vec::new();
        // A refusal each millisecond for a second.
        for streak in 1..=1000u32 {
            let now = NOW + u64::from(streak) * 1_000_000;
            if backend.is_due(streak, backend.failures_limit, now) {
                backend.signalled = now;
                signals.push(streak);
            }
        }
        assert_eq!(signals, [3, 204, 405, 606, 807]);
    }

    #[test]
    fn the_first_of_a_streak_is_never_held_back() {
        let backend =
            FailureStreak { failures_limit: 3, resets_limit: 5, signalled: NOW - 1, ..FailureStreak::default() };
        assert!(backend.is_due(3, 3, NOW) && !backend.is_due(6, 3, NOW));
        assert!(backend.is_due(5, 5, NOW) && !backend.is_due(4, 5, NOW));
    }

    #[test]
    fn a_backend_without_limits_never_signals() {
        for streak in 1..100 {
            assert!(!FailureStreak { resets_limit: 1, ..FailureStreak::default() }.is_due(streak, 1, NOW));
            assert!(!FailureStreak { failures_limit: 1, ..FailureStreak::default() }.is_due(streak, 0, NOW));
        }
    }

    #[test]
    fn a_kind_has_one_number() {
        for kind in SignalKind::ALL {
            let signal =
                Signal { backend_id: 1, kind: kind as u32, failures: 0, early_resets: 0, unanswered_since: 0, time: 0 };
            assert_eq!(signal.kind(), Some(kind));
            assert_eq!(Signal { kind: 99, ..signal }.kind(), None);
        }
    }
}
