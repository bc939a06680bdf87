//! What is known of a backend's fitness, beside the operator's zero. Each reason has an author of its own, who alone
//! sets and clears it: probes, reports, and the rules of ejection. What nobody says is that it is healthy.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Backend, BackendId, Service, Stamp, span::Span};

/// The reasons that keep a backend from new connections, as their authors last said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Health {
    /// Set while probes have not (or no longer) found it ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Unready>,
    /// What the application or a pipeline last said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ejection: Option<Ejection>,
}

/// Not ready, by probes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Unready {
    pub since: Stamp,
    /// It was never ready since it was added, or since a restore asked: no panic lets it serve.
    pub starting: bool,
    /// When a restore asked for a success newer than itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<Timestamp>,
    /// One sentence.
    pub message: String,
}

/// A report of readiness.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Report {
    pub since: Stamp,
    pub state: Reported,
    pub message: String,
    /// Time within which it must be said again, from `since`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Span>,
    /// When the backend's process began, if that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Stamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reported {
    /// Nothing was said yet, and something must be (`kind: report`).
    Awaited,
    Ready,
    /// As good as a zero: no panic lets it serve.
    NotReady,
    /// The lease is over, and was not renewed.
    Lapsed,
}

/// Taken out by a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ejection {
    /// When this stage began.
    pub since: Stamp,
    pub stage: Stage,
    /// Planned length of the stage.
    pub lasts: Span,
    /// How often in a row it was ejected, this time included: time out grows with it.
    pub times: u32,
    pub rule: Rule,
    /// One sentence with the figures that broke the rule.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Stage {
    /// No new connection.
    Out,
    /// [`TRIAL_PART`] of its weight; one failure more and it is out again.
    Trial,
}

/// Part of the weight of a backend on trial, in thousandths.
pub const TRIAL_PART: u32 = 20;

/// The rule that was broken: the label `rule` of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Rule {
    ConsecutiveFailures,
    ConsecutiveEarlyResets,
    Unanswered,
    FailurePercentage,
    #[serde(rename = "successRateStdevFactor")]
    SuccessRate,
    #[serde(rename = "connectTimeFactor")]
    ConnectTime,
}

impl Rule {
    pub const ALL: [Self; 6] = [
        Self::ConsecutiveFailures,
        Self::ConsecutiveEarlyResets,
        Self::Unanswered,
        Self::FailurePercentage,
        Self::SuccessRate,
        Self::ConnectTime,
    ];

    /// The name of the rule's field in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConsecutiveFailures => "consecutiveFailures",
            Self::ConsecutiveEarlyResets => "consecutiveEarlyResets",
            Self::Unanswered => "unanswered",
            Self::FailurePercentage => "failurePercentage",
            Self::SuccessRate => "successRateStdevFactor",
            Self::ConnectTime => "connectTimeFactor",
        }
    }
}

/// What an author says of one backend. It means nothing of a backend that is gone by now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthUpdate {
    pub backend: BackendId,
    pub report: HealthReport,
}

/// The author, and what is so from now on; `None` clears the author's reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HealthReport {
    Probe {
        reason: Option<Unready>,
        /// The last [`Unready::asked`] that was known when the probe began.
        asked: Option<Timestamp>,
    },
    Report(Option<Report>),
    Ejection(Option<Ejection>),
}

impl Unready {
    /// A new backend.
    pub fn unprobed() -> Self {
        let message = "it was not probed yet".to_owned();
        Self { since: Stamp::NEVER, starting: true, asked: None, message }
    }

    /// A backend that a restore lets in again: what probes found before may be true of a process that has ended since.
    fn restored(now: Timestamp) -> Self {
        let message = "it was not probed yet since it was restored".to_owned();
        Self { asked: Some(now), message, ..Self::unprobed() }
    }

    /// Whether no probe has said anything since a restore asked.
    pub fn is_unanswered(&self) -> bool {
        self.asked.is_some() && self.since == Stamp::NEVER
    }
}

impl Report {
    /// Nothing was said yet.
    pub fn awaited() -> Self {
        let message = "nobody has reported it ready yet".to_owned();
        Self { since: Stamp::NEVER, state: Reported::Awaited, message, lease: None, started: None }
    }

    /// The same, once its lease is over.
    pub fn lapsed(&self) -> Self {
        let lease = self.lease.unwrap_or(Span::ZERO);
        let message = format!("it was not reported ready again within {lease}");
        Self { state: Reported::Lapsed, message, ..self.clone() }
    }
}

impl Health {
    /// Nothing that anybody has to remember.
    pub fn is_empty(&self) -> bool {
        let Self { probe, report, ejection } = self;
        probe.is_none() && report.is_none() && ejection.is_none()
    }

    pub fn is_ready(&self) -> bool {
        self.probe.is_none() && self.report.as_ref().is_none_or(|report| report.state == Reported::Ready)
    }

    /// Whether nothing says that its process has ended: it is ready, or was when a restore asked anew.
    pub fn is_running(&self) -> bool {
        let is_asked = self.probe.as_ref().is_some_and(Unready::is_unanswered);
        self.is_ready() || (is_asked && Self { probe: None, ..self.clone() }.is_ready())
    }

    /// One sentence that says why it is not ready.
    pub fn why_unready(&self) -> Option<String> {
        let report = self.report.as_ref().filter(|report| report.state != Reported::Ready);
        let probe = self.probe.as_ref().map(|probe| probe.message.clone());
        probe.or_else(|| report.map(|report| report.message.clone()))
    }

    pub fn is_ejected(&self) -> bool {
        self.ejection.as_ref().is_some_and(|ejection| ejection.stage == Stage::Out)
    }

    pub fn is_on_trial(&self) -> bool {
        self.ejection.as_ref().is_some_and(|ejection| ejection.stage == Stage::Trial)
    }

    /// Whether it must not serve even in a panic: it never began to, or it said itself that it cannot.
    fn is_certain(&self) -> bool {
        self.probe.as_ref().is_some_and(|probe| probe.starting)
            || self.report.as_ref().is_some_and(|report| matches!(report.state, Reported::Awaited | Reported::NotReady))
    }

    fn with(&self, report: &HealthReport) -> Self {
        let mut health = self.clone();
        match report {
            HealthReport::Probe { reason, .. } => health.probe.clone_from(reason),
            HealthReport::Report(report) => health.report.clone_from(report),
            HealthReport::Ejection(ejection) => health.ejection.clone_from(ejection),
        }
        health
    }
}

impl Backend {
    /// Neither unready nor ejected.
    pub fn is_healthy(&self) -> bool {
        self.health.as_ref().is_none_or(|health| health.is_ready() && !health.is_ejected())
    }

    /// Whether it may serve as far as its health goes, with its service in panic or not.
    pub fn is_fit(&self, panic: bool) -> bool {
        self.is_healthy() || (panic && self.health.as_ref().is_none_or(|health| !health.is_certain()))
    }

    /// A panic is about backends that have served: the others are not missed.
    pub(super) fn counts_for_panic(&self) -> bool {
        self.health.as_ref().is_none_or(|health| !health.is_certain())
    }

    /// The same with what an author says; `None` when that is so already.
    pub(super) fn with_report(&self, report: &HealthReport) -> Option<Self> {
        let before = self.health.as_deref().cloned().unwrap_or_default();
        // Found before a restore asked anew.
        if let HealthReport::Probe { asked: known, .. } = report
            && before.probe.as_ref().and_then(|probe| probe.asked).is_some_and(|asked| Some(asked) != *known)
        {
            return None;
        }
        // A lease that was renewed in the meantime.
        if let HealthReport::Report(Some(lapsed)) = report
            && lapsed.state == Reported::Lapsed
            && before.report.as_ref().is_none_or(|report| report.since != lapsed.since)
        {
            return None;
        }
        let after = before.with(report);
        let health = || (!after.is_empty()).then(|| Arc::new(after.clone()));
        (before != after).then(|| Self { health: health(), ..self.clone() })
    }
}

impl Service {
    /// The same, with new success asked of the probes of some backends; `None` when none of them is probed.
    pub(super) fn asking(&self, now: Timestamp, is_asked: impl Fn(&Backend) -> bool) -> Option<Self> {
        let mut new = None;
        for (index, backend) in self.backends.iter().enumerate().filter(|(_, backend)| is_asked(backend)) {
            if !self.readiness(backend).is_some_and(super::Readiness::is_probed) {
                continue;
            }
            let health = backend.health.as_deref().cloned().unwrap_or_default();
            let health = Health { probe: Some(Unready::restored(now)), ..health };
            if let Some(place) = new.get_or_insert_with(|| self.clone()).backends.get_mut(index) {
                place.health = Some(Arc::new(health));
            }
        }
        new
    }

    pub fn readiness<'a>(&'a self, backend: &'a Backend) -> Option<&'a super::Readiness> {
        let own = backend.own.as_ref().and_then(|own| own.readiness.as_ref());
        own.or(self.health_policy.readiness.as_ref()).map(AsRef::as_ref)
    }

    pub fn warmup<'a>(&'a self, backend: &'a Backend) -> Option<&'a super::Warmup> {
        let own = backend.own.as_ref().and_then(|own| own.warmup.as_ref());
        own.or(self.health_policy.warmup.as_ref()).map(AsRef::as_ref)
    }
}
