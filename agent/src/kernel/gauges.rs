//! What the ever-growing counters of a backend say about now: the arithmetic, in one place.

use sluice_common::tables::{ConnectionFailure, Counters};

/// Connections of a backend at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// SYN sent, no answer yet, or a datagram socket that is not known to be used: `opened - established - failed`.
    pub connecting: u64,
    /// Established and not ended: `established - closed - lost`.
    pub active: u64,
    /// Never established, all reasons together.
    pub failed: u64,
}

impl Gauges {
    /// The kernel adds to each counter on its own, so that a reading may be between two of them: a difference that
    /// would be negative is 0.
    pub fn of(counters: &Counters) -> Self {
        let failed = counters.failed.iter().sum::<u64>();
        Self {
            connecting: counters.opened.saturating_sub(counters.established).saturating_sub(failed),
            active: counters.established.saturating_sub(counters.closed).saturating_sub(counters.lost),
            failed,
        }
    }
}

/// Connections on their way or established: what a census should find.
pub fn open(counters: &Counters) -> u64 {
    let ended = counters.failed.iter().sum::<u64>() + counters.closed + counters.lost;
    counters.opened.saturating_sub(ended)
}

/// Why connections failed, in the order of [`Counters::failed`], with the value of the label `reason`.
pub const REASONS: [(ConnectionFailure, &str); sluice_common::tables::FAILURES] = [
    (ConnectionFailure::Refused, "refused"),
    (ConnectionFailure::TimedOut, "timed_out"),
    (ConnectionFailure::Unreachable, "unreachable"),
    (ConnectionFailure::Abandoned, "abandoned"),
];

/// Counters of a backend that nothing was sent to.
#[cfg(test)]
pub const UNUSED: Counters = Counters {
    picked: 0,
    last_pick: 0,
    opened: 0,
    established: 0,
    closed: 0,
    resets: 0,
    retransmits: 0,
    lost: 0,
    failed: [0; sluice_common::tables::FAILURES],
    rtt_sum: 0,
    rtt_samples: 0,
    connect_sum: 0,
    duration_sum: 0,
    connect_time: [0; sluice_common::tables::CONNECT_BUCKETS],
    duration: [0; sluice_common::tables::DURATION_BUCKETS],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_in_one_gauge_at_a_time() {
        let table = [
            ("untouched", UNUSED, (0, 0, 0)),
            ("SYN sent", Counters { opened: 1, ..UNUSED }, (1, 0, 0)),
            ("refused", Counters { opened: 1, failed: [1, 0, 0, 0], ..UNUSED }, (0, 0, 1)),
            ("established", Counters { opened: 1, established: 1, ..UNUSED }, (0, 1, 0)),
            ("closed", Counters { opened: 1, established: 1, closed: 1, ..UNUSED }, (0, 0, 0)),
            ("end never seen", Counters { opened: 1, established: 1, lost: 1, ..UNUSED }, (0, 0, 0)),
            (
                "a mixture",
                Counters { opened: 10, established: 6, closed: 2, lost: 1, failed: [1, 0, 1, 1], ..UNUSED },
                (1, 3, 3),
            ),
        ];
        for (what, counters, (connecting, active, failed)) in table {
            assert_eq!(Gauges::of(&counters), Gauges { connecting, active, failed }, "{what}");
        }
    }

    #[test]
    fn a_reading_between_two_counters_is_never_negative() {
        let torn = Counters { opened: 1, established: 2, closed: 3, ..UNUSED };
        assert_eq!(Gauges::of(&torn), Gauges::default());
    }

    #[test]
    fn reasons_are_in_the_order_of_the_counters() {
        for (i, (failure, _)) in REASONS.iter().enumerate() {
            assert_eq!(*failure as usize, i);
        }
    }
}
