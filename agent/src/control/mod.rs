//! Behaviour over time, as state machines without I/O and with one protocol, [`StateMachine`].
#![deny(clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

mod announced;
pub mod attachment;
pub mod drain;
pub mod outlier;
pub mod peers;
pub mod readiness;
pub mod timers;
pub mod warmup;

use std::{iter, time::Duration};

use crate::model::Stamp;

/// A machine that does no I/O and reads no clock: events and the time go in, actions come out. Tests set the time.
///
/// Its driver hands each event to [`handle`](Self::handle), then carries out each [`next_action`](Self::next_action),
/// and sleeps no longer than until [`poll_timeout`](Self::poll_timeout); the arrival of that time is an event too.
pub trait StateMachine {
    type Event<'a>;
    type Action;

    /// Takes in what happened at `now`.
    fn handle(&mut self, event: Self::Event<'_>, now: Stamp);

    /// CLOCK_BOOTTIME ns at which the machine needs an event for the time; `None`: it waits for other events.
    fn poll_timeout(&self) -> Option<u64>;

    /// The next action to carry out, in order; `None`: all are.
    fn next_action(&mut self) -> Option<Self::Action>;

    /// All actions to carry out.
    fn actions(&mut self) -> Vec<Self::Action> {
        iter::from_fn(|| self.next_action()).collect()
    }

    /// Time from `now` until [`poll_timeout`](Self::poll_timeout); none once it has come.
    fn time_left(&self, now: Stamp) -> Option<Duration> {
        self.poll_timeout().map(|at| Duration::from_nanos(at.saturating_sub(now.ns)))
    }
}
