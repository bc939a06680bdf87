//! The kernel's side of it, as the machine wants it.

use std::{io, sync::Arc, time::Duration};

use sluice_common::{
    streak::{self, FailureStreak, SignalKind},
    tables::{Counters, Failure},
};

use super::StreakSource;
use crate::{
    control::outlier::{Limits, Look, Signal, Streaks, Totals},
    kernel::{self, Meters, Signals, StreakTable, readings::Readings},
    model::BackendId,
};

pub struct KernelStreaks {
    pub signals: Signals,
    pub streaks: StreakTable,
    pub meters: Arc<Meters>,
}

impl StreakSource for KernelStreaks {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(BackendId, Signal, Streaks)>> {
        Ok(self.signals.wait(timeout)?.iter().filter_map(heard).collect())
    }

    fn look(&self, backends: &[BackendId]) -> anyhow::Result<Vec<Look>> {
        let counters = self.meters.counters(backends)?;
        let streaks = backends.iter().map(|id| self.streaks.read(*id));
        Ok(counters.iter().zip(streaks).map(|(counters, watch)| look(counters, &watch)).collect())
    }

    fn restart(&self, backend: BackendId) -> anyhow::Result<()> {
        self.streaks.restart(backend, self.meters.begin_exact_times())
    }

    fn limit(&self, backend: BackendId, limits: Limits) -> anyhow::Result<()> {
        let Limits { failures, early_resets } = limits;
        self.streaks.set_limits(backend, kernel::SignalLimits { failures, early_resets })
    }
}

fn heard(signal: &streak::Signal) -> Option<(BackendId, Signal, Streaks)> {
    let kind = match signal.kind()? {
        SignalKind::Failures => Signal::Failure,
        SignalKind::Unanswered => Signal::Unanswered,
        SignalKind::EarlyResets => Signal::EarlyReset,
    };
    let streak::Signal { backend_id, failures, early_resets, unanswered_since, .. } = *signal;
    Some((BackendId(backend_id), kind, Streaks { failures, early_resets, unanswered_since }))
}

fn look(counters: &Counters, streak: &FailureStreak) -> Look {
    let FailureStreak { failures, early_resets, unanswered_since, early_resets_total, .. } = *streak;
    // What was unreachable may never have left the caller's host.
    let failed = [Failure::Refused, Failure::TimedOut];
    Look {
        streaks: Streaks { failures, early_resets, unanswered_since },
        totals: Totals {
            established: counters.established,
            failed: failed.iter().filter_map(|reason| counters.failed.get(*reason as usize)).sum(),
            early_resets: early_resets_total,
            connect_us: counters.connect_sum,
        },
    }
}
