//! The kernel's side of it, as the machine wants it.

use std::{io, sync::Arc, time::Duration};

use sluice_common::{
    tables::{Counters, Failure},
    watch::{self, SignalKind, Watch},
};

use super::StreakSource;
use crate::{
    control::outlier::{Limits, Look, Signal, Streaks, Totals},
    kernel::{self, Meters, Signals, Watches},
    model::BackendId,
};

pub struct KernelStreaks {
    pub signals: Signals,
    pub watches: Watches,
    pub meters: Arc<Meters>,
}

impl StreakSource for KernelStreaks {
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<(BackendId, Signal, Streaks)>> {
        Ok(self.signals.wait(timeout)?.iter().filter_map(heard).collect())
    }

    fn look(&self, backends: &[BackendId]) -> anyhow::Result<Vec<Look>> {
        let counters = self.meters.counters(backends)?;
        let watches = backends.iter().map(|id| self.watches.read(*id));
        Ok(counters.iter().zip(watches).map(|(counters, watch)| look(counters, &watch)).collect())
    }

    fn restart(&self, backend: BackendId) -> anyhow::Result<()> {
        self.watches.restart(backend, self.meters.begin_exact_times())
    }

    fn limit(&self, backend: BackendId, limits: Limits) -> anyhow::Result<()> {
        let Limits { failures, early_resets } = limits;
        self.watches.set_limits(backend, kernel::Limits { failures, early_resets })
    }
}

fn heard(signal: &watch::Signal) -> Option<(BackendId, Signal, Streaks)> {
    let kind = match signal.kind()? {
        SignalKind::Failures => Signal::Failure,
        SignalKind::Unanswered => Signal::Unanswered,
        SignalKind::EarlyResets => Signal::EarlyReset,
    };
    let watch::Signal { backend_id, failures, early_resets, unanswered_since, .. } = *signal;
    Some((BackendId(backend_id), kind, Streaks { failures, early_resets, unanswered_since }))
}

fn look(counters: &Counters, watch: &Watch) -> Look {
    let Watch { failures, early_resets, unanswered_since, early_resets_total, .. } = *watch;
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
