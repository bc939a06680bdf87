//! Timers in the order of their times.

use imbl::OrdSet;

/// Timers by their times. Cloning is cheap. A timer that is no longer needed may be removed, or ignored when it fires.
#[derive(Clone, Debug)]
pub struct Timers<At: Ord, What: Ord>(OrdSet<(At, What)>);

impl<At: Ord, What: Ord> Default for Timers<At, What> {
    fn default() -> Self {
        Self(OrdSet::new())
    }
}

impl<At: Copy + Ord, What: Copy + Ord> Timers<At, What> {
    pub fn add(&mut self, at: At, what: What) {
        self.0.insert((at, what));
    }

    pub fn remove(&mut self, at: At, what: What) {
        self.0.remove(&(at, what));
    }

    /// The earliest time.
    pub fn next(&self) -> Option<At> {
        self.0.get_min().map(|(at, _)| *at)
    }

    /// The timers that are due at `now`, in order.
    pub fn due(&self, now: At) -> impl Iterator<Item = What> {
        self.0.iter().take_while(move |(at, _)| *at <= now).map(|(_, what)| *what)
    }

    /// Takes out the first timer that is due at `now`.
    pub fn take_due(&mut self, now: At) -> Option<(At, What)> {
        let first = self.0.get_min().copied().filter(|(at, _)| *at <= now)?;
        self.0.remove(&first);
        Some(first)
    }
}
