//! When what is to be done, and how much of it at a time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant},
};

use crate::model::BackendId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timer {
    pub at: Instant,
    pub backend: BackendId,
    pub epoch: u64,
    pub wake: Wake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// See to leases, and to reasons of a prober that is none any more.
    Review,
    Probe,
    /// The delay of a backend that is ready may be over.
    Delay,
    /// What was told should show by now.
    Confirm,
}

/// Timers in the order of time.
#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<Timer>>);

impl Timers {
    pub fn add(&mut self, timer: Timer) {
        self.0.push(Reverse(timer));
    }

    pub fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse(timer)| timer.at)
    }

    /// Takes out the first one that is due.
    pub fn due(&mut self, now: Instant) -> Option<Timer> {
        self.next().filter(|at| *at <= now)?;
        self.0.pop().map(|Reverse(timer)| timer)
    }
}

/// Probes of one sort that are under way, and those that wait for them.
#[derive(Debug)]
pub struct Lane {
    most: usize,
    under_way: usize,
    waiting: VecDeque<(BackendId, u64)>,
}

impl Lane {
    pub fn new(most: usize) -> Self {
        Self { most, under_way: 0, waiting: VecDeque::new() }
    }

    pub fn has_room(&self) -> bool {
        self.under_way < self.most
    }

    pub fn enter(&mut self) {
        self.under_way += 1;
    }

    pub fn leave(&mut self) {
        self.under_way = self.under_way.saturating_sub(1);
    }

    pub fn wait(&mut self, backend: BackendId, epoch: u64) {
        self.waiting.push_back((backend, epoch));
    }

    /// The next one to begin, while there is room.
    pub fn next(&mut self) -> Option<(BackendId, u64)> {
        if self.has_room() { self.waiting.pop_front() } else { None }
    }
}

/// Spreads what would otherwise march in step. Xorshift (Marsaglia, 2003), another sequence in every agent.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub fn new() -> Self {
        Self(RandomState::new().build_hasher().finish() | 1)
    }

    /// From 0 to `most`.
    pub fn within(&mut self, most: Duration) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        most.mul_f64((self.0 >> 11) as f64 / (1_u64 << 53) as f64)
    }

    /// Within a tenth of `period`.
    pub fn about(&mut self, period: Duration) -> Duration {
        period - period / 10 + self.within(period / 5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_vary_by_a_tenth_at_most_and_about_equally() {
        let (mut jitter, period) = (Jitter::new(), Duration::from_secs(10));
        let periods: Vec<_> = (0..1000).map(|_| jitter.about(period)).collect();
        assert!(periods.iter().all(|one| (Duration::from_secs(9)..=Duration::from_secs(11)).contains(one)));
        let early = periods.iter().filter(|one| **one < period).count();
        assert!((350..650).contains(&early), "{early} of 1000 are shorter");
    }

    #[test]
    fn a_full_lane_has_others_wait_in_turn() {
        let mut lane = Lane::new(1);
        lane.enter();
        lane.wait(BackendId(1), 1);
        lane.wait(BackendId(2), 1);
        assert_eq!((lane.has_room(), lane.next()), (false, None));
        lane.leave();
        assert_eq!(lane.next(), Some((BackendId(1), 1)));
    }
}
