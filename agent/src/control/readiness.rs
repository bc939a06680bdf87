//! Whether one backend is ready, from what its probes find.

use std::time::Duration;

use super::{StateMachine, announced::Announced};
use crate::model::{Readiness, Stamp, Unready};

/// Least time between two announcements while a backend stays unready: one that fails for different reasons in turn
/// must not be saved at every probe.
const REWORDED: Duration = Duration::from_secs(30);

/// Why a probe failed. While it stays the same, nothing new is announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Refused,
    NoAnswer,
    Unreachable,
    /// The connection ended too early.
    Broken,
    /// The answer is not HTTP.
    NoHttp,
    Status(u16),
    Body,
    Exit(i32),
    Signal(i32),
    /// The probe could not begin.
    Setup,
}

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeFailure {
    pub cause: Cause,
    /// What failed, as in "connection refused".
    pub message: String,
}

#[derive(Clone, Debug)]
pub enum ReadinessEvent {
    /// A probe is over.
    Probed(Result<(), ProbeFailure>),
    /// The probes' reason as it was published.
    Published(Option<Unready>),
    /// The time of [`StateMachine::poll_timeout`] has come.
    Timeout,
}

/// One backend. The tracker goes on from the published reason, so that a restart changes nothing: a backend that serves
/// does so until probes have failed often enough, another waits until they have succeeded often enough.
#[derive(Debug)]
pub struct ReadinessTracker {
    success_threshold: u32,
    failure_threshold: u32,
    startup_grace: Duration,
    delay: Duration,
    /// When the first probe was planned: [`Self::startup_grace`] counts from here.
    began: Stamp,
    /// The probes' reason.
    reason: Announced<Option<Unready>>,
    /// When the tracker announced the reason; `None`: it found the reason published.
    announced_at: Option<Stamp>,
    /// Cause of the reason, if the tracker announced it.
    cause: Option<Cause>,
    /// Probes in a row that succeeded.
    successes: u32,
    /// Probes in a row that failed.
    failures: u32,
    /// When the backend was found ready; set while its delay still keeps it closed.
    ready_since: Option<Stamp>,
    action: Option<Option<Unready>>,
}

impl ReadinessTracker {
    /// Tracks a backend whose probes' reason was published as `reason`.
    pub fn new(readiness: &Readiness, reason: Option<Unready>, now: Stamp) -> Self {
        Self {
            success_threshold: readiness.success_threshold,
            failure_threshold: readiness.failure_threshold,
            startup_grace: readiness.startup_grace.duration(),
            delay: readiness.delay.duration(),
            began: now,
            reason: Announced::new(reason),
            announced_at: None,
            cause: None,
            successes: 0,
            failures: 0,
            ready_since: None,
            action: None,
        }
    }

    fn succeeded(&mut self, now: Stamp) {
        self.failures = 0;
        self.successes = self.successes.saturating_add(1);
        if let Some(unready) = self.reason.current().clone()
            && self.successes >= self.success_threshold
        {
            let is_news = self.ready_since.is_none();
            self.ready_since.get_or_insert(now);
            if is_news && !self.delay.is_zero() {
                let delay = self.delay.as_secs_f64();
                let message = format!("ready; it takes connections after its delay of {delay}s");
                return self.announce(Some(Unready { message, ..unready }), None, Some(now));
            }
        }
        self.end_delay(now);
    }

    fn end_delay(&mut self, now: Stamp) {
        if self.ready_since.is_some_and(|since| since.left(self.delay, &now).is_zero()) {
            self.ready_since = None;
            self.announce(None, None, None);
        }
    }

    fn failed(&mut self, failure: ProbeFailure, now: Stamp) {
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        let is_enough = self.failures >= self.failure_threshold;
        if is_enough {
            self.ready_since = None;
        }
        let ProbeFailure { cause, message } = failure;
        let next = match self.reason.current() {
            None if !is_enough => return,
            None => Unready { since: now, starting: false, asked: None, message },
            // Ready and in its delay, until probes have failed often enough.
            Some(_) if self.ready_since.is_some() => return,
            Some(reason) if reason.starting && reason.since == Stamp::NEVER => {
                if self.began.until(&now) < self.startup_grace {
                    return;
                }
                Unready { since: now, message, ..reason.clone() }
            }
            Some(reason) => {
                if self.cause == Some(cause) || reason.message == message {
                    self.cause = Some(cause);
                    return;
                }
                if self.announced_at.is_some_and(|at| at.until(&now) < REWORDED) {
                    return;
                }
                Unready { message, ..reason.clone() }
            }
        };
        self.announce(Some(next), Some(cause), Some(now));
    }

    fn announce(&mut self, reason: Option<Unready>, cause: Option<Cause>, at: Option<Stamp>) {
        (self.cause, self.announced_at) = (cause, at);
        self.reason.announce(reason.clone());
        self.action = Some(reason);
    }
}

impl StateMachine for ReadinessTracker {
    type Event<'a> = ReadinessEvent;
    /// The probes' new reason; `None`: the backend is ready.
    type Action = Option<Unready>;

    fn handle(&mut self, event: ReadinessEvent, now: Stamp) {
        match event {
            ReadinessEvent::Probed(Ok(())) => self.succeeded(now),
            ReadinessEvent::Probed(Err(failure)) => self.failed(failure, now),
            ReadinessEvent::Published(reason) => {
                if self.reason.is_overruled(reason) {
                    (self.announced_at, self.cause, self.ready_since) = (None, None, None);
                }
            }
            ReadinessEvent::Timeout => self.end_delay(now),
        }
    }

    /// The end of the delay.
    fn poll_timeout(&self) -> Option<u64> {
        self.ready_since.map(|since| since.after(self.delay).ns)
    }

    fn next_action(&mut self) -> Option<Option<Unready>> {
        self.action.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Span;

    fn refused() -> Result<(), ProbeFailure> {
        Err(ProbeFailure { cause: Cause::Refused, message: "connection refused".into() })
    }

    fn status(status: u16) -> Result<(), ProbeFailure> {
        Err(ProbeFailure { cause: Cause::Status(status), message: format!("HTTP {status}, wanted 200-399") })
    }

    fn starting() -> Option<Unready> {
        Some(Unready { since: Stamp::NEVER, starting: true, asked: None, message: "it was not probed yet".into() })
    }

    fn at(seconds: u64) -> Stamp {
        Stamp::test(seconds * 1000)
    }

    impl ReadinessTracker {
        fn saw(&mut self, result: Result<(), ProbeFailure>, now: Stamp) -> Option<Option<Unready>> {
            self.handle(ReadinessEvent::Probed(result), now);
            self.next_action()
        }

        fn look(&mut self, now: Stamp) -> Option<Option<Unready>> {
            self.handle(ReadinessEvent::Timeout, now);
            self.next_action()
        }
    }

    fn machine(told: Option<Unready>, change: impl FnOnce(&mut Readiness)) -> ReadinessTracker {
        let mut readiness = Readiness::default();
        change(&mut readiness);
        ReadinessTracker::new(&readiness, told, at(0))
    }

    #[test]
    fn a_new_backend_is_ready_after_enough_successes_in_a_row() {
        let mut new = machine(starting(), |readiness| readiness.success_threshold = 2);
        assert_eq!(new.saw(Ok(()), at(0)), None);
        assert!(new.saw(refused(), at(1)).is_some(), "what is wrong is told at once");
        assert_eq!(new.saw(Ok(()), at(2)), None);
        assert_eq!(new.saw(Ok(()), at(3)), Some(None));
        assert_eq!((new.saw(Ok(()), at(4)), new.reason.current().clone()), (None, None));
    }

    #[test]
    fn one_that_serves_goes_on_until_enough_probes_have_failed_in_a_row() {
        let mut serving = machine(None, |_| {});
        for (second, result) in [refused(), refused(), Ok(()), refused(), refused()].into_iter().enumerate() {
            assert_eq!(serving.saw(result, at(second as u64)), None);
        }
        let told = Unready { since: at(9), starting: false, asked: None, message: "connection refused".into() };
        assert_eq!(serving.saw(refused(), at(9)), Some(Some(told)));
        assert_eq!(serving.saw(refused(), at(10)), None, "told once");
        assert_eq!(serving.saw(Ok(()), at(11)), Some(None));
    }

    #[test]
    fn the_startup_grace_is_quiet() {
        let mut new = machine(starting(), |readiness| readiness.startup_grace = Span::seconds(30));
        assert_eq!(new.saw(refused(), at(1)), None);
        assert_eq!(new.saw(refused(), at(29)), None);
        let told = Unready { since: at(30), starting: true, asked: None, message: "connection refused".into() };
        assert_eq!(new.saw(refused(), at(30)), Some(Some(told)));
        let mut quick = machine(starting(), |readiness| readiness.startup_grace = Span::seconds(30));
        assert_eq!(quick.saw(refused(), at(1)), None);
        assert_eq!(quick.saw(Ok(()), at(2)), Some(None), "it does not wait for the grace to end");
    }

    #[test]
    fn the_delay_passes_before_the_first_connection() {
        let delay = |readiness: &mut Readiness| {
            readiness.delay = Span::seconds(10);
            readiness.failure_threshold = 2;
        };
        let waits = |told: Option<Option<Unready>>| {
            told.flatten().is_some_and(|told| told.message.contains("after its delay of 10s"))
        };
        let mut new = machine(starting(), delay);
        assert!(waits(new.saw(Ok(()), at(1))), "who looks is told what it waits for");
        assert_eq!(new.saw(Ok(()), at(2)), None, "once");
        assert_eq!(new.time_left(at(3)), Some(Duration::from_secs(8)));
        assert_eq!(new.saw(refused(), at(6)), None, "one failure is not enough");
        assert_eq!((new.look(at(10)), new.look(at(11))), (None, Some(None)));
        assert_eq!(new.time_left(at(12)), None);

        let mut failing = machine(starting(), delay);
        assert!(waits(failing.saw(Ok(()), at(1))));
        assert_eq!(failing.saw(refused(), at(2)), None);
        assert!(failing.saw(refused(), at(3)).is_some(), "it is not ready any more");
        assert_eq!((failing.time_left(at(3)), failing.look(at(20))), (None, None));
        assert!(waits(failing.saw(Ok(()), at(21))), "the delay begins anew");
        assert_eq!(failing.time_left(at(21)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_new_cause_is_told_and_a_storm_of_them_is_not() {
        let mut machine = machine(None, |readiness| readiness.failure_threshold = 1);
        let since = at(1);
        assert!(machine.saw(refused(), since).is_some());
        assert_eq!(machine.saw(status(503), at(2)), None, "too soon after the last");
        let told = Unready { since, starting: false, asked: None, message: "HTTP 503, wanted 200-399".into() };
        assert_eq!(machine.saw(status(503), at(31)), Some(Some(told)));
        let changes = (32..91).filter(|second| machine.saw(status(500 + (second % 2) as u16), at(*second)).is_some());
        assert!(changes.count() <= 2);
        let last_line =
            |line: &str| Err(ProbeFailure { cause: Cause::Exit(1), message: format!("exit status 1: {line}") });
        machine.saw(last_line("at 10:00"), at(200));
        assert_eq!(machine.saw(last_line("at 10:01"), at(300)), None, "the same cause in other words");
    }

    #[test]
    fn a_restart_goes_on_from_what_was_told() {
        let told = Unready { since: at(0), starting: false, asked: None, message: "connection refused".into() };
        let mut after = machine(Some(told), |_| {});
        assert_eq!(after.saw(refused(), at(100)), None, "that is known");
        assert_eq!(after.saw(Ok(()), at(105)), Some(None));
        let mut serving = machine(None, |_| {});
        assert_eq!(serving.saw(refused(), at(100)), None, "one failure after a restart is no reason");
    }
}
