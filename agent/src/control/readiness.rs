//! Whether one backend is ready, from what its probes find.

use std::time::Duration;

use crate::model::{Readiness, Stamp, Unready};

/// Least time between two changes of the message while a backend stays unready: one that fails in turns for different
/// reasons must not be saved at every probe.
const RETOLD: Duration = Duration::from_secs(30);

/// Why a probe failed. While it stays the same, nothing new is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Refused,
    NoAnswer,
    Unreachable,
    /// The connection ended too early.
    Broken,
    /// The answer is none of the protocol.
    NoHttp,
    Status(u16),
    Body,
    Exit(i32),
    Signal(i32),
    /// The probe could not even begin.
    Setup,
}

/// A probe that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub cause: Cause,
    /// What failed, as in "connection refused".
    pub message: String,
}

/// What a change of the probes' reason is: `Some(None)` clears it.
pub type Told = Option<Option<Unready>>;

/// One backend. It goes on from what was told last, so that a restart changes nothing: one that serves does so until
/// probes have failed often enough, one that does not waits until they have succeeded often enough.
#[derive(Debug)]
pub struct ReadinessTracker {
    success_threshold: u32,
    failure_threshold: u32,
    startup_grace: Duration,
    delay: Duration,
    began: Stamp,
    told: Option<Unready>,
    told_at: Option<Stamp>,
    /// Of what was told, when it was told by this machine.
    cause: Option<Cause>,
    /// In a row.
    successes: u32,
    failures: u32,
    /// It is ready, and is not told so before its delay is over.
    ready_since: Option<Stamp>,
}

impl ReadinessTracker {
    /// Of a backend of which `told` is known.
    pub fn new(readiness: &Readiness, told: Option<Unready>, now: Stamp) -> Self {
        Self {
            success_threshold: readiness.success_threshold,
            failure_threshold: readiness.failure_threshold,
            startup_grace: readiness.startup_grace.duration(),
            delay: readiness.delay.duration(),
            began: now,
            told,
            told_at: None,
            cause: None,
            successes: 0,
            failures: 0,
            ready_since: None,
        }
    }

    /// What was told last.
    pub fn told(&self) -> Option<&Unready> {
        self.told.as_ref()
    }

    /// Goes on from what somebody else has said.
    pub fn adopt(&mut self, told: Option<Unready>) {
        self.told = told;
        self.told_at = None;
        self.cause = None;
        self.ready_since = None;
    }

    /// Takes note of a probe. Returns what is so from now on, when that is another thing.
    pub fn saw(&mut self, result: Result<(), Failure>, now: Stamp) -> Told {
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                if self.told.is_some() && self.successes >= self.success_threshold {
                    let is_news = self.ready_since.is_none();
                    self.ready_since.get_or_insert(now);
                    if is_news && !self.delay.is_zero() {
                        return self.waits(now);
                    }
                }
                self.look(now)
            }
            Err(failure) => self.failed(failure, now),
        }
    }

    /// Time until [`ReadinessTracker::look`] has something to say without another probe.
    pub fn due(&self, now: Stamp) -> Option<Duration> {
        self.ready_since.map(|since| since.left(self.delay, &now))
    }

    /// Ends the delay when its time has come.
    pub fn look(&mut self, now: Stamp) -> Told {
        let is_over = self.ready_since.is_some_and(|since| since.left(self.delay, &now).is_zero());
        is_over.then(|| {
            self.ready_since = None;
            self.told_at = None;
            self.cause = None;
            self.told.take();
            None
        })
    }

    /// Says that it is ready, and waits for its delay.
    fn waits(&mut self, now: Stamp) -> Told {
        let told = self.told.clone()?;
        let message = format!("ready; it takes connections after its delay of {}s", self.delay.as_secs_f64());
        self.told_at = Some(now);
        self.cause = None;
        self.told = Some(Unready { message, ..told });
        self.told.clone().map(Some)
    }

    fn failed(&mut self, failure: Failure, now: Stamp) -> Told {
        self.successes = 0;
        self.failures = self.failures.saturating_add(1);
        let is_enough = self.failures >= self.failure_threshold;
        if is_enough {
            self.ready_since = None;
        }
        let next = match &self.told {
            None if !is_enough => return None,
            None => Unready { since: now, starting: false, message: failure.message },
            // Still ready, as far as anybody can tell.
            Some(_) if self.ready_since.is_some() => return None,
            Some(told) if told.starting && told.since == Stamp::NEVER => {
                if self.began.until(&now) < self.startup_grace {
                    return None;
                }
                Unready { since: now, message: failure.message, ..told.clone() }
            }
            Some(told) => {
                let is_known = self.cause == Some(failure.cause) || told.message == failure.message;
                if is_known {
                    self.cause = Some(failure.cause);
                    return None;
                }
                if self.told_at.is_some_and(|at| at.until(&now) < RETOLD) {
                    return None;
                }
                Unready { message: failure.message, ..told.clone() }
            }
        };
        self.cause = Some(failure.cause);
        self.told_at = Some(now);
        self.told = Some(next.clone());
        Some(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Span;

    fn refused() -> Result<(), Failure> {
        Err(Failure { cause: Cause::Refused, message: "connection refused".into() })
    }

    fn status(status: u16) -> Result<(), Failure> {
        Err(Failure { cause: Cause::Status(status), message: format!("HTTP {status}, wanted 200-399") })
    }

    fn starting() -> Option<Unready> {
        Some(Unready { since: Stamp::NEVER, starting: true, message: "it was not probed yet".into() })
    }

    fn at(seconds: u64) -> Stamp {
        Stamp::test(seconds * 1000)
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
        assert_eq!((new.saw(Ok(()), at(4)), new.told()), (None, None));
    }

    #[test]
    fn one_that_serves_goes_on_until_enough_probes_have_failed_in_a_row() {
        let mut serving = machine(None, |_| {});
        for (second, result) in [refused(), refused(), Ok(()), refused(), refused()].into_iter().enumerate() {
            assert_eq!(serving.saw(result, at(second as u64)), None);
        }
        let told = Unready { since: at(9), starting: false, message: "connection refused".into() };
        assert_eq!(serving.saw(refused(), at(9)), Some(Some(told)));
        assert_eq!(serving.saw(refused(), at(10)), None, "told once");
        assert_eq!(serving.saw(Ok(()), at(11)), Some(None));
    }

    #[test]
    fn the_startup_grace_is_quiet() {
        let mut new = machine(starting(), |readiness| readiness.startup_grace = Span::seconds(30));
        assert_eq!(new.saw(refused(), at(1)), None);
        assert_eq!(new.saw(refused(), at(29)), None);
        let told = Unready { since: at(30), starting: true, message: "connection refused".into() };
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
        let waits = |told: Told| told.flatten().is_some_and(|told| told.message.contains("after its delay of 10s"));
        let mut new = machine(starting(), delay);
        assert!(waits(new.saw(Ok(()), at(1))), "who looks is told what it waits for");
        assert_eq!(new.saw(Ok(()), at(2)), None, "once");
        assert_eq!(new.due(at(3)), Some(Duration::from_secs(8)));
        assert_eq!(new.saw(refused(), at(6)), None, "one failure is not enough");
        assert_eq!((new.look(at(10)), new.look(at(11))), (None, Some(None)));
        assert_eq!(new.due(at(12)), None);

        let mut failing = machine(starting(), delay);
        assert!(waits(failing.saw(Ok(()), at(1))));
        assert_eq!(failing.saw(refused(), at(2)), None);
        assert!(failing.saw(refused(), at(3)).is_some(), "it is not ready any more");
        assert_eq!((failing.due(at(3)), failing.look(at(20))), (None, None));
        assert!(waits(failing.saw(Ok(()), at(21))), "the delay begins anew");
        assert_eq!(failing.due(at(21)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_new_cause_is_told_and_a_storm_of_them_is_not() {
        let mut machine = machine(None, |readiness| readiness.failure_threshold = 1);
        let since = at(1);
        assert!(machine.saw(refused(), since).is_some());
        assert_eq!(machine.saw(status(503), at(2)), None, "too soon after the last");
        let told = Unready { since, starting: false, message: "HTTP 503, wanted 200-399".into() };
        assert_eq!(machine.saw(status(503), at(31)), Some(Some(told)));
        let changes = (32..91).filter(|second| machine.saw(status(500 + (second % 2) as u16), at(*second)).is_some());
        assert!(changes.count() <= 2);
        let last_line = |line: &str| Err(Failure { cause: Cause::Exit(1), message: format!("exit status 1: {line}") });
        machine.saw(last_line("at 10:00"), at(200));
        assert_eq!(machine.saw(last_line("at 10:01"), at(300)), None, "the same cause in other words");
    }

    #[test]
    fn a_restart_goes_on_from_what_was_told() {
        let told = Unready { since: at(0), starting: false, message: "connection refused".into() };
        let mut after = machine(Some(told), |_| {});
        assert_eq!(after.saw(refused(), at(100)), None, "that is known");
        assert_eq!(after.saw(Ok(()), at(105)), Some(None));
        let mut serving = machine(None, |_| {});
        assert_eq!(serving.saw(refused(), at(100)), None, "one failure after a restart is no reason");
    }
}
