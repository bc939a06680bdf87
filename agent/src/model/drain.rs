//! A zero that also empties its target: what was asked for, and how it ended.

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sluice_common::drain::Draining;
use utoipa::ToSchema;

use super::{
    Backend, Ending, Name, Node, Outcome, Refusal, Service, ServiceProtocol, State, Target, Touched, UsualPort, Zero,
    quiet, zero::AskedZero,
};

/// Part of a [`super::Zero`]: both are set, kept and restored as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drain {
    /// Id of the operation that reports on it.
    pub operation: String,
    /// Who began it, or took it over by force: others may only make it gentler.
    #[serde(default)]
    pub owner: String,
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
    pub const DEFAULT: u32 = sluice_common::drain::DEFAULT_QUIET;
    /// A jiffy is up to 10 ms: less quiet than this says nothing. ms.
    pub const LEAST: u32 = 100;
    /// One hour, ms.
    pub const MOST: u32 = 3_600_000;

    /// Whether nothing is left that this choice could close: what is idle is said by the time of quiet.
    pub fn rules_out(self, inbound: CloseInbound) -> bool {
        self == Self::Never && inbound == CloseInbound::Idle
    }

    /// ms of quiet before a service that says nothing itself has its connections closed. What a service says counts
    /// alike for every request.
    fn patience(self) -> u32 {
        match self {
            Self::Usual => Self::DEFAULT,
            Self::After(quiet) => quiet,
            Self::Never => u32::MAX,
        }
    }
}

impl FromStr for IdleClose {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "never" => Ok(Self::Never),
            "usual" => Ok(Self::Usual),
            time => quiet::parse(time).map(Self::After),
        }
    }
}

impl fmt::Display for IdleClose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usual | Self::After(_) => write!(f, "after {} of quiet", quiet::text(self.patience())),
            Self::Never => f.write_str("never"),
        }
    }
}

impl Drain {
    pub const DEADLINE: Duration = Duration::from_secs(60);
    /// Longest time that a drain may take.
    pub const MAX_DEADLINE: SignedDuration = SignedDuration::from_hours(24 * 7);

    /// What the target's drain is after `request` of `by`: a new one, or the one that lasts with what was said anew.
    ///
    /// # Errors
    /// When it is another's who lasts, and would end sooner or close more than that one wants, without force; when it
    /// contradicts itself.
    pub(super) fn asked(
        old: Option<&Self>,
        request: &DrainRequest,
        by: &str,
        asked: &AskedZero<'_>,
    ) -> Result<Self, Refusal> {
        let now = asked.now;
        let lasting = old.filter(|old| old.end.is_none());
        let begun = || Self {
            operation: request.operation.clone(),
            owner: by.to_owned(),
            since: now,
            deadline: after(now, Self::DEADLINE),
            idle_close: IdleClose::default(),
            on_deadline: OnDeadline::default(),
            close_inbound: CloseInbound::default(),
            end: None,
        };
        let drain = lasting.cloned().unwrap_or_else(begun);
        let drain = Self {
            owner: if asked.force { by.to_owned() } else { drain.owner },
            deadline: request.deadline.map_or(drain.deadline, |deadline| after(now, deadline)),
            idle_close: request.idle_close.unwrap_or(drain.idle_close),
            on_deadline: request.on_deadline.unwrap_or(drain.on_deadline),
            close_inbound: request.close_inbound.unwrap_or(drain.close_inbound),
            ..drain
        };
        if drain.idle_close.rules_out(drain.close_inbound) {
            let field = if request.close_inbound.is_some() { "closeInbound" } else { "idleClose" };
            return Err(Refusal::invalid(
                field,
                "closeInbound \"idle\" closes nothing with idleClose \"never\": give idleClose a time, or leave one of them out",
            ));
        }
        match lasting {
            Some(lasting) if !asked.force && lasting.owner != by => drain.no_harder_than(lasting),
            Some(_) | None => Ok(drain),
        }
    }

    /// What this drain lets be done to the connections of a backend of `service`.
    pub fn draining(&self, service: &Service, backend: &Backend) -> Draining {
        let closes_sessions = service.protocol == Some(ServiceProtocol::Request);
        Draining { quiet: self.quiet(service, backend), terms: (self.terms() << 1) | u32::from(closes_sessions) }
    }

    /// The port by which its connections to a backend of `service` are taken for sessions, and not closed for being idle.
    pub fn usual_port(&self, service: &Service, backend: &Backend) -> Option<UsualPort> {
        service.usual_port(backend).filter(|_| self.idle_close != IdleClose::Never)
    }

    /// Another number for another deadline, another end there, and for other care of accepted connections.
    pub fn terms(&self) -> u32 {
        let closes = [self.on_deadline == OnDeadline::Close, self.close_inbound == CloseInbound::Idle];
        closes.iter().fold(self.deadline.as_millisecond() as u32, |terms, closes| terms << 1 | u32::from(*closes))
    }

    /// This drain, if it closes nothing that `theirs` does not close, and nothing sooner.
    fn no_harder_than(self, theirs: &Self) -> Result<Self, Refusal> {
        let closes = |drain: &Self| (drain.on_deadline == OnDeadline::Close, drain.close_inbound == CloseInbound::Idle);
        let ((late, inbound), (their_late, their_inbound)) = (closes(&self), closes(theirs));
        let (field, wants) = if self.deadline < theirs.deadline {
            ("deadline", format!("lets it last until {:.0}", theirs.deadline))
        } else if late && !their_late {
            ("onDeadline", "keeps what is left then".to_owned())
        } else if self.idle_close.patience() < theirs.idle_close.patience() {
            ("idleClose", format!("closes idle connections {}", theirs.idle_close))
        } else if inbound && !their_inbound {
            ("closeInbound", "closes nothing that callers from elsewhere have opened".to_owned())
        } else {
            return Ok(self);
        };
        let message = format!("this drain is that of {}, who {wants}: leave it out, or force it", theirs.owner);
        Err(Refusal { field: Some(field.to_owned()), ..Refusal::conflict(message, Vec::new()) })
    }

    /// Quiet after which this drain closes an idle connection to a backend of `service`, in ms; 0: never.
    fn quiet(&self, service: &Service, backend: &Backend) -> u32 {
        if service.protocol == Some(ServiceProtocol::Stream) || service.usual_port(backend).is_some() {
            return 0;
        }
        match (self.idle_close, service.idle_close) {
            (IdleClose::Never, _) => 0,
            (IdleClose::Usual, own) => own.unwrap_or(IdleClose::DEFAULT),
            (IdleClose::After(quiet), own) => own.map_or(quiet, |own| own.max(quiet)),
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

impl State {
    /// Each service is made anew once, however many of its drains have ended.
    pub(super) fn end_drains(&mut self, ends: &[Ending], touched: &mut Touched) -> Result<Outcome, Refusal> {
        let mut of_services: BTreeMap<&Name, BTreeMap<&Name, &Ending>> = BTreeMap::new();
        for ending in ends {
            match &ending.target {
                Target::Node(name) => {
                    let Some(node) = self.node(name.as_str()).cloned() else { continue };
                    let Some(zero) = node.zero.as_deref().and_then(|zero| zero.ended(ending)) else { continue };
                    self.install_node(Node { zero: Some(Arc::new(zero)), ..(*node).clone() }, touched);
                }
                Target::Backend { service, backend } => {
                    of_services.entry(service).or_default().insert(backend, ending);
                }
            }
        }
        for (name, ends) in of_services {
            let Some(old) = self.service(name.as_str()).cloned() else { continue };
            let mut new = (*old).clone();
            let mut changed = false;
            for backend in &mut new.backends {
                let ended = |zero: &Zero| zero.ended(ends.get(&backend.name)?);
                if let Some(zero) = backend.zero.as_deref().and_then(ended) {
                    (backend.zero, changed) = (Some(Arc::new(zero)), true);
                }
            }
            if changed {
                self.install(Some(&old), Some(Arc::new(new)), touched)?;
            }
        }
        Ok(if touched.is_empty() { Outcome::Unchanged } else { Outcome::Replaced })
    }
}

impl Zero {
    /// The same when its drain has ended like this; `None` when that is not the drain that lasts.
    fn ended(&self, ending: &Ending) -> Option<Self> {
        let drain = self.lasting_drain().filter(|drain| drain.operation == ending.operation)?;
        Some(Self { drain: Some(Drain { end: Some(ending.end), ..drain.clone() }), ..self.clone() })
    }

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
    use crate::model::RefusalKind;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn ask(old: Option<&Drain>, request: &DrainRequest, by: &str, force: bool, second: i64) -> Result<Drain, Refusal> {
        let now = at(second);
        let zero = Zero { owner: by.into(), reason: String::new(), since: now, expires: None, drain: None };
        Drain::asked(old, request, by, &AskedZero { zero: &zero, drain: Some(request), force, now })
    }

    #[test]
    fn a_request_during_a_drain_changes_only_what_it_says() {
        let asked =
            |old: Option<&Drain>, request: &DrainRequest, second| ask(old, request, "me", false, second).unwrap();
        let begin = DrainRequest {
            operation: "op-1".into(),
            on_deadline: Some(OnDeadline::Close),
            deadline: Some(Duration::from_secs(5)),
            ..DrainRequest::default()
        };
        let first = asked(None, &begin, 100);
        assert_eq!((first.since, first.deadline, first.idle_close), (at(100), at(105), IdleClose::Usual));
        let again = DrainRequest { operation: "op-2".into(), ..DrainRequest::default() };
        assert_eq!(asked(Some(&first), &again, 103), first);
        let longer = DrainRequest { deadline: Some(Duration::from_secs(60)), ..again.clone() };
        assert_eq!(asked(Some(&first), &longer, 103), Drain { deadline: at(163), ..first.clone() });
        let ended = Drain { end: Some(DrainEnd::DeadlineReached), ..first };
        let second = asked(Some(&ended), &again, 200);
        assert_eq!((second.operation.as_str(), second.since, second.end), ("op-2", at(200), None));
        assert_eq!((second.deadline, second.on_deadline), (at(260), OnDeadline::Keep));
    }

    #[test]
    fn a_drain_that_closes_nothing_idle_cannot_close_what_is_accepted() {
        let (never, idle) = (Some(IdleClose::Never), Some(CloseInbound::Idle));
        let refused = |old: Option<&Drain>, idle_close, close_inbound| {
            let request = DrainRequest { idle_close, close_inbound, ..DrainRequest::default() };
            let refusal = ask(old, &request, "me", true, 100).err()?;
            assert_eq!(refusal.kind, RefusalKind::Invalid);
            refusal.field
        };
        assert_eq!(refused(None, never, idle).as_deref(), Some("closeInbound"));
        let lasting = |idle_close, close_inbound| {
            let request = DrainRequest { idle_close, close_inbound, ..DrainRequest::default() };
            ask(None, &request, "me", false, 100).unwrap()
        };
        // What a repeated drain leaves out is as it was.
        assert_eq!(refused(Some(&lasting(never, None)), None, idle).as_deref(), Some("closeInbound"));
        assert_eq!(refused(Some(&lasting(None, idle)), never, None).as_deref(), Some("idleClose"));
        assert_eq!(refused(Some(&lasting(None, idle)), never, Some(CloseInbound::Never)), None);
    }

    #[test]
    fn who_did_not_begin_a_drain_may_only_make_it_gentler() {
        let gentle = DrainRequest {
            deadline: Some(Duration::from_secs(60)),
            idle_close: Some(IdleClose::After(5000)),
            ..DrainRequest::default()
        };
        let hard = DrainRequest {
            deadline: Some(Duration::from_secs(5)),
            idle_close: Some(IdleClose::After(100)),
            on_deadline: Some(OnDeadline::Close),
            close_inbound: Some(CloseInbound::Idle),
            ..DrainRequest::default()
        };
        let (gently, hardly) =
            (ask(None, &gentle, "me", false, 100).unwrap(), ask(None, &hard, "me", false, 100).unwrap());
        // What it says, and the field with which it is refused when it is said of the gentle one.
        type Say = fn(&mut DrainRequest);
        let cases: [(Say, Option<&str>); 14] = [
            (|_| (), None),
            (|request| request.deadline = Some(Duration::from_secs(59)), Some("deadline")),
            (|request| request.deadline = Some(Duration::ZERO), Some("deadline")),
            (|request| request.deadline = Some(Duration::from_secs(60)), None),
            (|request| request.deadline = Some(Duration::from_secs(600)), None),
            (|request| request.on_deadline = Some(OnDeadline::Close), Some("onDeadline")),
            (|request| request.on_deadline = Some(OnDeadline::Keep), None),
            (|request| request.idle_close = Some(IdleClose::After(4999)), Some("idleClose")),
            (|request| request.idle_close = Some(IdleClose::Usual), Some("idleClose")),
            (|request| request.idle_close = Some(IdleClose::After(5000)), None),
            (|request| request.idle_close = Some(IdleClose::Never), None),
            (|request| request.close_inbound = Some(CloseInbound::Idle), Some("closeInbound")),
            (|request| request.close_inbound = Some(CloseInbound::Never), None),
            (
                |request| {
                    request.deadline = Some(Duration::from_secs(600));
                    request.on_deadline = Some(OnDeadline::Close);
                },
                Some("onDeadline"),
            ),
        ];
        for (say, field) in cases {
            let mut request = DrainRequest { operation: "op-2".into(), ..DrainRequest::default() };
            say(&mut request);
            let own = ask(Some(&gently), &request, "me", false, 100).unwrap();
            match (ask(Some(&gently), &request, "you", false, 100), field) {
                (Ok(drain), None) => assert_eq!(drain, own, "{request:?}"),
                (Err(refusal), Some(field)) => {
                    assert_eq!((refusal.kind, refusal.field.as_deref()), (RefusalKind::Conflict, Some(field)));
                    assert!(refusal.message.contains("that of me, who"), "{refusal}");
                }
                (answer, _) => panic!("{request:?}: {answer:?}"),
            }
            let forced = ask(Some(&gently), &request, "you", true, 100).unwrap();
            assert_eq!(forced, Drain { owner: "you".into(), ..own });
            // There is nothing harder than this one, but for an earlier end; without idle ones it contradicts itself.
            let refused = request.idle_close == Some(IdleClose::Never)
                || request.deadline.is_some_and(|deadline| deadline < Duration::from_secs(5));
            assert_eq!(ask(Some(&hardly), &request, "you", false, 100).is_err(), refused, "{request:?}");
        }
        // What has ended is nobody's any more.
        let ended = Drain { end: Some(DrainEnd::DeadlineReached), ..gently };
        assert_eq!(ask(Some(&ended), &hard, "you", false, 200).unwrap().owner, "you");
    }
}
