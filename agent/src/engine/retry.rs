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
    /// The try failed. While one is pending this changes nothing: whatever else fails does not put it off.
    pub fn failed(&mut self) {
        if self.is_pending() {
            return;
        }
        let pause = SHORTEST.saturating_mul(1 << self.failures.min(8)).min(LONGEST);
        (self.at, self.failures) = (Some(Instant::now() + pause), self.failures + 1);
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A try begins: nothing is pending unless [`Retry::failed`] follows.
    pub fn begins(&mut self) {
        self.at = None;
    }

    /// What it waits for may have come: the next try is after the shortest pause at the latest.
    pub fn hope(&mut self) {
        self.at = self.at.map(|at| at.min(Instant::now() + SHORTEST));
    }

    /// When to try again; `None`: there is nothing to try.
    pub fn at(&self) -> Option<Instant> {
        self.at
    }

    /// Whether the last try failed.
    pub fn has_failed(&self) -> bool {
        self.failures > 0
    }

    pub fn is_pending(&self) -> bool {
        self.at.is_some()
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.at.is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_each_try_and_nothing_else_puts_one_off() {
        let mut retry = Retry::default();
        retry.failed();
        let first = retry.at();
        retry.failed();
        assert_eq!(retry.at(), first);
        let left = |retry: &Retry| retry.at().unwrap().saturating_duration_since(Instant::now());
        for _ in 0..10 {
            retry.begins();
            assert!(!retry.is_pending());
            retry.failed();
        }
        assert!(left(&retry) > LONGEST / 2 && left(&retry) <= LONGEST);
        retry.hope();
        assert!(left(&retry) <= SHORTEST);
        retry.succeeded();
        retry.failed();
        assert!(left(&retry) <= SHORTEST);
    }
}
