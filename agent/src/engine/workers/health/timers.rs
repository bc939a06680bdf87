//! When the scheduler does what, and how much of it at a time.

use std::{collections::VecDeque, time::Duration};

use crate::model::BackendId;

/// What a timer of a backend is for. One of another epoch is of another configuration, and means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeDue {
    pub backend: BackendId,
    pub epoch: u64,
    pub wake: Wake,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    /// The lease of the backend's report may be over.
    Lease,
    /// The next probe begins.
    Probe,
    /// The delay of a backend that is ready may be over.
    Delay,
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

/// From none to `most`: spreads what would otherwise march in step, in every agent in another way.
pub fn within(most: Duration) -> Duration {
    most.mul_f64(fastrand::f64())
}

/// A time that is within a tenth of `period`.
pub fn about(period: Duration) -> Duration {
    period - period / 10 + within(period / 5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_vary_by_a_tenth_at_most_and_about_equally() {
        let period = Duration::from_secs(10);
        let periods: Vec<_> = (0..1000).map(|_| about(period)).collect();
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
