//! When what failed is tried again: after pauses that double.

use std::time::{Duration, Instant};

/// The first pause.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// One thing that may have to be tried again.
#[derive(Debug, Default)]
pub(super) struct Retry {
    at: Option<Instant>,
    /// Failures in a row.
    failures: u32,
}

impl Retry {
    pub fn failed(&mut self) {
        let pause = SHORTEST.saturating_mul(1 << self.failures.min(8)).min(LONGEST);
        (self.at, self.failures) = (Some(Instant::now() + pause), self.failures + 1);
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A try begins: it is the last one unless [`Retry::failed`] follows.
    pub fn begins(&mut self) {
        self.at = None;
    }

    /// What it waits for may have come: the next try is after the shortest pause.
    pub fn hope(&mut self) {
        self.at = self.at.map(|at| at.min(Instant::now() + SHORTEST));
    }

    /// When to try again; `None`: there is nothing to try.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    pub fn is_pending(&self) -> bool {
        self.at.is_some()
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}
