//! Timers in the order of their times.

use imbl::OrdSet;

/// What is due, and when. A clone costs the same however many there are. Whoever adds a timer and needs it no more may
/// remove it, or tell by `What` that it has no meaning any more.
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

    /// The time of the first one.
    pub fn next(&self) -> Option<At> {
        self.0.get_min().map(|(at, _)| *at)
    }

    /// Those that are due at `now`, in order.
    pub fn due(&self, now: At) -> impl Iterator<Item = What> {
        self.0.iter().take_while(move |(at, _)| *at <= now).map(|(_, what)| *what)
    }

    /// Takes out the first one that is due at `now`.
    pub fn take_due(&mut self, now: At) -> Option<(At, What)> {
        let first = self.0.get_min().copied().filter(|(at, _)| *at <= now)?;
        self.0.remove(&first);
        Some(first)
    }
}
