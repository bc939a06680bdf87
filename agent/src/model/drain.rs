//! A zero that also empties its target: what was asked for, and how it ended.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::leaving::Leaving;
use utoipa::ToSchema;

use super::{Backend, Node, Service, State, Zero};

/// Part of a [`super::Zero`]: both are set, kept and restored as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// Id of the operation that reports on it.
    pub operation: String,
    pub since: Timestamp,
    pub deadline: Timestamp,
    pub idle_close: IdleClose,
    pub on_deadline: OnDeadline,
    pub close_inbound: CloseInbound,
    /// Absent while it lasts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<DrainEnd>,
}

/// When idle connections are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IdleClose {
    /// After [`IdleClose::DEFAULT`], or what the service says.
    #[default]
    Usual,
    Never,
    /// After so many milliseconds of quiet, or what the service says if that is longer.
    After(u32),
}

/// What becomes of the connections that are left when the deadline is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnDeadline {
    /// They stay.
    #[default]
    Keep,
    /// They are closed, whatever they do.
    Close,
}

/// What becomes of connections that local backends have accepted from callers that nobody steers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CloseInbound {
    /// They are counted.
    #[default]
    Never,
    /// Idle ones are closed. A caller that sends a request in that moment loses it.
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum DrainEnd {
    /// Nothing was left.
    Drained,
    DeadlineReached,
}

/// A request to drain; what it leaves out has a default, or stays as it is when the drain lasts already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainRequest {
    /// Id of the operation if this begins one.
    pub operation: String,
    /// From now.
    pub deadline: Option<Duration>,
    pub idle_close: Option<IdleClose>,
    pub on_deadline: Option<OnDeadline>,
    pub close_inbound: Option<CloseInbound>,
}

impl IdleClose {
    /// ms.
    pub const DEFAULT: u32 = sluice_common::leaving::DEFAULT_QUIET;
    /// A jiffy is up to 10 ms: less quiet than this says nothing. ms.
    pub const LEAST: u32 = 100;
    /// One hour, ms.
    pub const MOST: u32 = 3_600_000;
}

impl Drain {
    pub const DEADLINE: Duration = Duration::from_secs(60);

    /// What the target's drain is after `request`: a new one, or the one that lasts with what was said anew.
    pub(super) fn asked(old: Option<&Self>, request: &DrainRequest, now: Timestamp) -> Self {
        let begun = || Self {
            operation: request.operation.clone(),
            since: now,
            deadline: after(now, Self::DEADLINE),
            idle_close: IdleClose::default(),
            on_deadline: OnDeadline::default(),
            close_inbound: CloseInbound::default(),
            end: None,
        };
        let drain = old.filter(|old| old.end.is_none()).cloned().unwrap_or_else(begun);
        Self {
            deadline: request.deadline.map_or(drain.deadline, |deadline| after(now, deadline)),
            idle_close: request.idle_close.unwrap_or(drain.idle_close),
            on_deadline: request.on_deadline.unwrap_or(drain.on_deadline),
            close_inbound: request.close_inbound.unwrap_or(drain.close_inbound),
            ..drain
        }
    }

    /// What this drain lets be done to the connections of `service`.
    pub fn leaving(&self, service: &Service) -> Leaving {
        let deadline = self.deadline.as_millisecond() as u32;
        Leaving { quiet: self.quiet(service), terms: deadline << 1 | u32::from(self.on_deadline == OnDeadline::Close) }
    }

    /// Quiet after which this drain closes an idle connection of `service`, in ms; 0: never.
    fn quiet(&self, service: &Service) -> u32 {
        match (self.idle_close, service.protocol, service.idle_close) {
            (IdleClose::Never, _, _) | (_, super::ServiceProtocol::Stream, _) => 0,
            (IdleClose::Usual, _, own) => own.unwrap_or(IdleClose::DEFAULT),
            (IdleClose::After(quiet), _, own) => own.map_or(quiet, |own| own.max(quiet)),
        }
    }
}

impl State {
    /// The drain that empties this backend: its own, or that of its node.
    pub fn drain<'a>(&'a self, backend: &'a Backend) -> Option<&'a Drain> {
        let node = || self.node_by_id(backend.node)?.lasting_drain();
        backend.zero.as_deref().and_then(Zero::lasting_drain).or_else(node)
    }
}

impl Zero {
    /// Its drain, while that lasts.
    pub fn lasting_drain(&self) -> Option<&Drain> {
        self.drain.as_ref().filter(|drain| drain.end.is_none())
    }
}

impl Node {
    fn lasting_drain(&self) -> Option<&Drain> {
        self.zero.as_deref()?.lasting_drain()
    }
}

fn after(now: Timestamp, time: Duration) -> Timestamp {
    now.checked_add(time).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_during_a_drain_changes_only_what_it_says() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let begin = DrainRequest {
            operation: "op-1".into(),
            on_deadline: Some(OnDeadline::Close),
            deadline: Some(Duration::from_secs(5)),
            ..DrainRequest::default()
        };
        let first = Drain::asked(None, &begin, at(100));
        assert_eq!((first.since, first.deadline, first.idle_close), (at(100), at(105), IdleClose::Usual));
        let again = DrainRequest { operation: "op-2".into(), ..DrainRequest::default() };
        assert_eq!(Drain::asked(Some(&first), &again, at(103)), first);
        let longer = DrainRequest { deadline: Some(Duration::from_secs(60)), ..again.clone() };
        assert_eq!(Drain::asked(Some(&first), &longer, at(103)), Drain { deadline: at(163), ..first.clone() });
        let ended = Drain { end: Some(DrainEnd::DeadlineReached), ..first };
        let second = Drain::asked(Some(&ended), &again, at(200));
        assert_eq!((second.operation.as_str(), second.since, second.end), ("op-2", at(200), None));
        assert_eq!((second.deadline, second.on_deadline), (at(260), OnDeadline::Keep));
    }
}
