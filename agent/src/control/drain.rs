//! A drain from its zero to its end.

use std::time::Duration;

use jiff::Timestamp;
use sluice_common::drain::{ALL, DATAGRAMS};

use crate::model::{Drain, DrainEnd, OnDeadline, OperationPhase};

/// Time between the first and the last of the looks that must find nothing: a connection that was on its way has shown up
/// by then.
const EMPTY_FOR: Duration = Duration::from_millis(200);
/// How long after the deadline connections are still closed, when that was asked for.
const GRACE: Duration = Duration::from_secs(5);

/// What one look found, before anything was closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Connections of all kinds.
    pub total: u64,
    /// Those that quiet alone will close: idle ones and datagram sockets of services that allow it.
    pub closing: u64,
    /// Accepted by backends on this host.
    pub inbound: u64,
    /// Closed in this look.
    pub closed: u64,
    /// Of them: because the deadline was over.
    pub closed_late: u64,
    /// Whether everything could be looked at.
    pub complete: bool,
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// When the first of the looks was that have found nothing since.
    empty: Option<Timestamp>,
    /// Whether something was closed because the deadline was over.
    late: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    GoesOn(OperationPhase),
    Ends(DrainEnd),
}

/// What the next look may close of a backend whose idle connections are closed after `quiet` ms (0: never), as the
/// programs want it.
pub fn allowed(drain: &Drain, quiet: u32, now: Timestamp) -> u32 {
    let all = drain.on_deadline == OnDeadline::Close && now >= drain.deadline;
    // A datagram socket does not tell when it was used last: it gets its time from the beginning of the drain.
    let quiet_enough = quiet != 0 && now >= later(drain.since, Duration::from_millis(u64::from(quiet)));
    (u32::from(all) * ALL) | (u32::from(quiet_enough) * DATAGRAMS)
}

impl Progress {
    /// Takes note of one look.
    pub fn saw(&mut self, drain: &Drain, seen: &Seen, now: Timestamp) -> Step {
        let is_empty = seen.total == 0 && seen.inbound == 0 && seen.complete;
        let empty_for = self.empty.filter(|_| is_empty);
        self.empty = is_empty.then(|| self.empty.unwrap_or(now));
        if empty_for.is_some_and(|first| now >= later(first, EMPTY_FOR)) {
            return Step::Ends(if self.late { DrainEnd::DeadlineReached } else { DrainEnd::Drained });
        }
        let over = now >= drain.deadline && !is_empty;
        let closes = seen.closed > 0 || (drain.on_deadline == OnDeadline::Close && seen.total > 0);
        if over && (!closes || now >= later(drain.deadline, GRACE)) {
            return Step::Ends(DrainEnd::DeadlineReached);
        }
        self.late |= seen.closed_late > 0;
        Step::GoesOn(if seen.closing > 0 { OperationPhase::ClosingIdle } else { OperationPhase::Waiting })
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

    const EMPTY: Seen = Seen { total: 0, closing: 0, inbound: 0, closed: 0, closed_late: 0, complete: true };
    const LAST_IDLE: Seen = Seen { total: 1, closing: 1, closed: 1, ..EMPTY };
    const LAST: Seen = Seen { total: 2, closed: 2, closed_late: 1, ..EMPTY };
    const BUSY: Seen = Seen { total: 2, ..EMPTY };
    const IDLE: Seen = Seen { total: 2, closing: 1, ..EMPTY };

    /// What a drain does on each look: (time, what is seen, what follows).
    fn assert_course(drain: &Drain, course: &[(i64, Seen, Step)]) {
        let mut progress = Progress::default();
        for (second, seen, step) in course {
            assert_eq!(progress.saw(drain, seen, at(*second)), *step, "at {second}: {seen:?}");
        }
    }

    const WAITING: Step = Step::GoesOn(OperationPhase::Waiting);
    const CLOSING: Step = Step::GoesOn(OperationPhase::ClosingIdle);
    const DRAINED: Step = Step::Ends(DrainEnd::Drained);
    const OVER: Step = Step::Ends(DrainEnd::DeadlineReached);

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
        let (strangers, blind) = (Seen { inbound: 1, ..EMPTY }, Seen { complete: false, ..EMPTY });
        assert_course(&drain, &[(100, strangers, WAITING), (101, strangers, WAITING), (160, strangers, OVER)]);
        assert_course(&drain, &[(100, blind, WAITING), (101, blind, WAITING), (160, blind, OVER)]);
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
            assert_eq!(allowed(&close, quiet, at(second)), expected, "at {second}, {quiet} ms");
        }
        assert_eq!(allowed(&drain(OnDeadline::Keep), 0, at(1000)), 0);
    }
}
