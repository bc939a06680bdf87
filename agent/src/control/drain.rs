//! A drain from its zero to its end.

use std::time::Duration;

use jiff::Timestamp;
use sluice_common::drain::{ALL, DATAGRAMS};

use super::StateMachine;
use crate::model::{Drain, DrainEnd, OnDeadline, OperationPhase, Stamp};

/// Time from the first to the last of the looks that must find nothing: a connection that was on its way shows up
/// within it.
const EMPTY_FOR: Duration = Duration::from_millis(200);
/// How long after the deadline connections are still closed, when that was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// What one look found, before anything was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenConnections {
    /// Connections of all kinds.
    pub total: u64,
    /// Those that will be closed once they are quiet: idle ones, and datagram sockets of services that allow it.
    pub closing: u64,
    /// Accepted by backends on this host.
    pub inbound: u64,
    /// Flows of unconnected datagram sockets that stay. Nothing closes them: the end of the drain moves them.
    pub flows: u64,
    /// Closed in this look.
    pub closed: u64,
    /// Of them: closed because the deadline was over.
    pub closed_late: u64,
    /// Whether every connection could be looked at.
    pub complete: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum DrainEvent<'a> {
    /// The drain was asked for again: its deadline may be another.
    Asked(&'a Drain),
    /// A look at its connections is over.
    Looked(SeenConnections),
}

/// What follows from a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainAction {
    GoesOn(OperationPhase),
    Ends(DrainEnd),
}

/// How far a drain has come.
#[derive(Debug)]
pub struct DrainProgress {
    since: Timestamp,
    deadline: Timestamp,
    on_deadline: OnDeadline,
    /// When the deadline was learned. Time is counted from there, so that setting the wall clock does not move the
    /// deadline.
    learned: Stamp,
    /// When the looks began to find nothing, if the last one did.
    empty: Option<Timestamp>,
    /// Whether something was closed because the deadline was over.
    late: bool,
    action: Option<DrainAction>,
}

impl DrainProgress {
    pub fn new(drain: &Drain, now: Stamp) -> Self {
        let Drain { since, deadline, on_deadline, .. } = *drain;
        Self { since, deadline, on_deadline, learned: now, empty: None, late: false, action: None }
    }

    /// What the next look may close of a backend whose idle connections are closed after `quiet` ms (0: never), as the
    /// programs want it.
    pub fn allowed(&self, quiet: u32, now: Stamp) -> u32 {
        let now = self.time(now);
        let all = self.on_deadline == OnDeadline::Close && now >= self.deadline;
        // A datagram socket does not tell when it was last used: its quiet is counted from the beginning of the drain.
        let quiet_enough = quiet != 0 && now >= later(self.since, Duration::from_millis(u64::from(quiet)));
        (u32::from(all) * ALL) | (u32::from(quiet_enough) * DATAGRAMS)
    }

    fn judge(&mut self, seen: &SeenConnections, now: Timestamp) -> DrainAction {
        let is_empty = seen.total + seen.inbound + seen.flows == 0 && seen.complete;
        let empty_for = self.empty.filter(|_| is_empty);
        self.empty = is_empty.then(|| self.empty.unwrap_or(now));
        if empty_for.is_some_and(|first| now >= later(first, EMPTY_FOR)) {
            return DrainAction::Ends(if self.late { DrainEnd::DeadlineReached } else { DrainEnd::Drained });
        }
        let over = now >= self.deadline && !is_empty;
        let closes = seen.closed > 0 || (self.on_deadline == OnDeadline::Close && seen.total > 0);
        if over && (!closes || now >= later(self.deadline, GRACE)) {
            return DrainAction::Ends(DrainEnd::DeadlineReached);
        }
        self.late |= seen.closed_late > 0;
        DrainAction::GoesOn(if seen.closing > 0 { OperationPhase::ClosingIdle } else { OperationPhase::Waiting })
    }

    /// The wall-clock time, continued from when the deadline was learned.
    fn time(&self, now: Stamp) -> Timestamp {
        later(self.learned.at, self.learned.until(&now))
    }
}

impl StateMachine for DrainProgress {
    type Event<'a> = DrainEvent<'a>;
    type Action = DrainAction;

    fn handle(&mut self, event: DrainEvent<'_>, now: Stamp) {
        match event {
            DrainEvent::Asked(drain) => {
                if self.deadline != drain.deadline {
                    self.learned = now;
                }
                (self.since, self.deadline, self.on_deadline) = (drain.since, drain.deadline, drain.on_deadline);
            }
            DrainEvent::Looked(seen) => self.action = Some(self.judge(&seen, self.time(now))),
        }
    }

    /// The next look that may end the drain: at its deadline, or when it has been empty for long enough.
    fn poll_timeout(&self) -> Option<u64> {
        let emptied = self.empty.map_or(Timestamp::MAX, |first| later(first, EMPTY_FOR));
        let wait = emptied.min(self.deadline).duration_since(self.learned.at);
        Some(self.learned.after(wait.try_into().unwrap_or(Duration::ZERO)).ns)
    }

    fn next_action(&mut self) -> Option<DrainAction> {
        self.action.take()
    }
}

fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{CloseInbound, IdleClose};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn stamp(second: i64) -> Stamp {
        Stamp { at: at(second), ..Stamp::test(second as u64 * 1000) }
    }

    fn drain(on_deadline: OnDeadline) -> Drain {
        Drain {
            operation: "op-1".into(),
            owner: "me".into(),
            since: at(100),
            deadline: at(160),
            idle_close: IdleClose::Usual,
            on_deadline,
            close_inbound: CloseInbound::Never,
            end: None,
        }
    }

    const EMPTY: SeenConnections =
        SeenConnections { total: 0, closing: 0, inbound: 0, flows: 0, closed: 0, closed_late: 0, complete: true };
    const LAST_IDLE: SeenConnections = SeenConnections { total: 1, closing: 1, closed: 1, ..EMPTY };
    const LAST: SeenConnections = SeenConnections { total: 2, closed: 2, closed_late: 1, ..EMPTY };
    const BUSY: SeenConnections = SeenConnections { total: 2, ..EMPTY };
    const IDLE: SeenConnections = SeenConnections { total: 2, closing: 1, ..EMPTY };

    /// What a drain does on each look: (time, what is seen, what follows).
    fn assert_course(drain: &Drain, course: &[(i64, SeenConnections, DrainAction)]) {
        let mut progress = DrainProgress::new(drain, stamp(course[0].0));
        for (second, seen, follows) in course {
            progress.handle(DrainEvent::Looked(*seen), stamp(*second));
            assert_eq!(progress.actions(), [*follows], "at {second}: {seen:?}");
        }
    }

    const WAITING: DrainAction = DrainAction::GoesOn(OperationPhase::Waiting);
    const CLOSING: DrainAction = DrainAction::GoesOn(OperationPhase::ClosingIdle);
    const DRAINED: DrainAction = DrainAction::Ends(DrainEnd::Drained);
    const OVER: DrainAction = DrainAction::Ends(DrainEnd::DeadlineReached);

    #[test]
    fn it_is_drained_when_two_looks_in_a_row_find_nothing() {
        let drain = drain(OnDeadline::Keep);
        assert_course(
            &drain,
            &[(100, BUSY, WAITING), (101, IDLE, CLOSING), (102, EMPTY, WAITING), (103, EMPTY, DRAINED)],
        );
        assert_course(
            &drain,
            &[(100, EMPTY, WAITING), (101, BUSY, WAITING), (102, EMPTY, WAITING), (103, EMPTY, DRAINED)],
        );
    }

    #[test]
    fn strangers_count_and_so_does_what_could_not_be_looked_at() {
        let drain = drain(OnDeadline::Keep);
        let (strangers, blind) =
            (SeenConnections { inbound: 1, ..EMPTY }, SeenConnections { complete: false, ..EMPTY });
        assert_course(&drain, &[(100, strangers, WAITING), (101, strangers, WAITING), (160, strangers, OVER)]);
        assert_course(&drain, &[(100, blind, WAITING), (101, blind, WAITING), (160, blind, OVER)]);
    }

    #[test]
    fn flows_of_datagrams_are_waited_for_until_the_deadline_and_not_longer() {
        let flows = SeenConnections { flows: 1, ..EMPTY };
        for on_deadline in [OnDeadline::Keep, OnDeadline::Close] {
            let drain = drain(on_deadline);
            assert_course(&drain, &[(100, flows, WAITING), (159, flows, WAITING), (160, flows, OVER)]);
            assert_course(&drain, &[(100, flows, WAITING), (101, EMPTY, WAITING), (102, EMPTY, DRAINED)]);
        }
    }

    #[test]
    fn the_deadline_ends_it_or_closes_what_is_left() {
        assert_course(&drain(OnDeadline::Keep), &[(159, BUSY, WAITING), (160, BUSY, OVER)]);
        assert_course(&drain(OnDeadline::Keep), &[(160, EMPTY, WAITING), (161, EMPTY, DRAINED)]);
        let close = drain(OnDeadline::Close);
        assert_course(&close, &[(160, LAST, WAITING), (161, EMPTY, WAITING), (162, EMPTY, OVER)]);
        // Nothing was lost: what was left was idle, or ended by itself.
        assert_course(
            &drain(OnDeadline::Keep),
            &[(160, LAST_IDLE, CLOSING), (161, EMPTY, WAITING), (162, EMPTY, DRAINED)],
        );
        assert_course(&close, &[(160, LAST_IDLE, CLOSING), (161, EMPTY, WAITING), (162, EMPTY, DRAINED)]);
        assert_course(&close, &[(159, BUSY, WAITING), (160, EMPTY, WAITING), (161, EMPTY, DRAINED)]);
        assert_course(&close, &[(160, BUSY, WAITING), (165, BUSY, OVER)]);
        // An agent that was away comes back late.
        assert_course(&drain(OnDeadline::Keep), &[(10_000, BUSY, OVER)]);
    }

    #[test]
    fn what_may_be_closed_depends_on_the_time() {
        let close = drain(OnDeadline::Close);
        for (second, quiet, expected) in [
            (100, 2000, 0),
            (101, 2000, 0),
            (102, 2000, DATAGRAMS),
            (102, 0, 0),
            (160, 2000, ALL | DATAGRAMS),
            (160, 0, ALL),
        ] {
            assert_eq!(
                DrainProgress::new(&close, stamp(second)).allowed(quiet, stamp(second)),
                expected,
                "at {second}, {quiet} ms"
            );
        }
        assert_eq!(DrainProgress::new(&drain(OnDeadline::Keep), stamp(1000)).allowed(0, stamp(1000)), 0);
    }

    #[test]
    fn setting_the_clock_moves_no_deadline_and_putting_it_off_does() {
        let mut kept = drain(OnDeadline::Keep);
        let mut progress = DrainProgress::new(&kept, stamp(100));
        let set = |second: i64| Stamp { at: at(9_000), ..stamp(second) };
        assert_eq!(progress.time_left(set(130)), Some(Duration::from_secs(30)));
        progress.handle(DrainEvent::Looked(BUSY), set(159));
        assert_eq!(progress.actions(), [WAITING]);
        kept.deadline = at(9_100);
        progress.handle(DrainEvent::Asked(&kept), set(159));
        progress.handle(DrainEvent::Looked(BUSY), set(258));
        assert_eq!((progress.actions(), progress.time_left(set(258))), (vec![WAITING], Some(Duration::from_secs(1))));
        progress.handle(DrainEvent::Looked(EMPTY), set(258));
        assert_eq!(progress.time_left(set(258)), Some(EMPTY_FOR), "the second look ends it");
        progress.handle(DrainEvent::Looked(BUSY), set(259));
        assert_eq!(progress.actions(), [OVER]);
    }
}
