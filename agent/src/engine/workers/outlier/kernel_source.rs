//! Reads and sets in the kernel what the outlier detector asks for.

use std::{io, sync::Arc, time::Duration};

use sluice_common::{
    streak::{FailureStreak, Signal},
    tables::{ConnectionFailure, Counters},
};

use super::StreakSource;
use crate::{
    control::outlier::{BackendCounts, SignalKind, SignalLimits, Streaks, Totals},
    host::clock,
    kernel::{Meters, Signals, StreakTable, readings::Readings},
    model::BackendId,
};

pub struct KernelStreaks {
    pub signals: Signals,
    pub streaks: StreakTable,
    pub meters: Arc<Meters>,
}

impl StreakSource for KernelStreaks {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(BackendId, SignalKind, Streaks)>> {
        let signals = self.signals.wait(timeout)?;
        let now = clock::monotonic_ns();
        let heard = |signal: &Signal| {
            let Signal { failures, early_resets, unanswered_since, .. } = *signal;
            let streaks = streaks(failures, early_resets, unanswered_since, now);
            Some((BackendId(signal.backend_id), signal.kind()?, streaks))
        };
        Ok(signals.iter().filter_map(heard).collect())
    }

    fn count(&self, backends: &[BackendId]) -> anyhow::Result<Vec<BackendCounts>> {
        let counters = self.meters.counters(backends)?;
        let now = clock::monotonic_ns();
        let streaks = backends.iter().map(|id| self.streaks.read(*id));
        Ok(counters.iter().zip(streaks).map(|(counters, streak)| counts(counters, &streak, now)).collect())
    }

    fn restart(&self, backend: BackendId) -> anyhow::Result<()> {
        self.streaks.restart(backend, self.meters.begin_exact_times())
    }

    fn limit(&self, backend: BackendId, limits: SignalLimits) -> anyhow::Result<()> {
        self.streaks.set_limits(backend, limits)
    }
}

fn counts(counters: &Counters, streak: &FailureStreak, now: u64) -> BackendCounts {
    let FailureStreak { failures, early_resets, unanswered_since, early_resets_total, .. } = *streak;
    // What was unreachable may never have left the caller's host.
    let failed = [ConnectionFailure::Refused, ConnectionFailure::TimedOut];
    BackendCounts {
        streaks: streaks(failures, early_resets, unanswered_since, now),
        totals: Totals {
            established: counters.established,
            failed: failed.iter().filter_map(|reason| counters.failed.get(*reason as usize)).sum(),
            early_resets: early_resets_total,
            connect_us: counters.connect_sum,
        },
    }
}

/// `unanswered_since` and `now` are CLOCK_MONOTONIC, ns.
fn streaks(failures: u32, early_resets: u32, unanswered_since: u64, now: u64) -> Streaks {
    let waited = || Duration::from_nanos(now.saturating_sub(unanswered_since));
    Streaks { failures, early_resets, unanswered_for: (unanswered_since != 0).then(waited) }
}
