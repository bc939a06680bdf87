//! Health and warm-up of a backend as the API shows them.

use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    control::warmup::{Ramps, WHOLE},
    host::clock,
    model::{Backend, Ejection, Health, Report, Reported, Rule, Service, Stage, Stamp, Unready},
};

/// What is said against a backend. Each reason has an author of its own, who alone clears it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HealthStatus {
    pub ready: bool,
    pub ejected: bool,
    pub reasons: Vec<Reason>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    pub author: Author,
    /// Whether it keeps the backend from connections: a report of ready does not, nor does a trial.
    #[serde(default)]
    pub holds: bool,
    /// Absent when it was so from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    pub message: String,
    /// When it ends by itself, or goes on to its next stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// The rule that was broken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<Rule>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// How often in a row it was ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// Who says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Author {
    Probe,
    Report,
    Outlier,
}

/// How far a backend's warm-up has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WarmingStatus {
    /// Part of its weight that it has now, 0..=1.
    pub part: f64,
    pub since: Timestamp,
    pub warm_at: Timestamp,
}

impl HealthStatus {
    pub fn of(backend: &Backend) -> Option<Self> {
        let health = backend.health.as_deref()?;
        let Health { probe, report, ejection } = health;
        let reasons = [
            probe.as_ref().map(of_probe),
            report.as_ref().filter(|report| report.state != Reported::Ready || report.lease.is_some()).map(of_report),
            ejection.as_ref().map(of_ejection),
        ];
        let reasons: Vec<_> = reasons.into_iter().flatten().collect();
        let status = Self { ready: health.is_ready(), ejected: health.is_ejected(), reasons };
        (!status.reasons.is_empty()).then_some(status)
    }

    /// One line for a table: the author and the cause.
    pub fn sentence(&self) -> String {
        let reasons: Vec<_> = self.reasons.iter().map(|reason| reason.message.clone()).collect();
        reasons.join("; ")
    }
}

impl WarmingStatus {
    pub fn of(ramps: &Ramps, service: &Service, backend: &Backend) -> Option<Self> {
        let (ramp, warmup) = (ramps.get(backend.id)?, service.warmup(backend)?);
        let now = clock::stamp();
        // In wall-clock time as the clock is set now.
        let since = now.before(ramp.since.until(&now)).at;
        let left = warmup.reaches(WHOLE).saturating_sub(ramp.since.until(&now));
        Some(Self { part: f64::from(ramp.part) / f64::from(WHOLE), since, warm_at: now.after(left).at })
    }
}

impl Author {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Report => "report",
            Self::Outlier => "outlier",
        }
    }
}

fn of_probe(probe: &Unready) -> Reason {
    let said = reason(Author::Probe, probe.since, &probe.message, None);
    Reason { since: said.since.or(probe.asked), ..said }
}

fn of_report(report: &Report) -> Reason {
    let lease = report.lease.filter(|_| report.state == Reported::Ready);
    let since = match (report.state, report.lease) {
        (Reported::Lapsed, Some(lease)) => report.since.after(lease.duration()),
        _ => report.since,
    };
    let holds = report.state != Reported::Ready;
    Reason { holds, ..reason(Author::Report, since, &report.message, lease.map(|lease| lease.duration())) }
}

fn of_ejection(ejection: &Ejection) -> Reason {
    let Ejection { since, stage, lasts, times, rule, message } = ejection;
    Reason {
        holds: *stage == Stage::Out,
        rule: Some(*rule),
        stage: Some(*stage),
        times: Some(*times),
        ..reason(Author::Outlier, *since, message, Some(lasts.duration()))
    }
}

fn reason(author: Author, since: Stamp, message: &str, lasts: Option<Duration>) -> Reason {
    let now = clock::stamp();
    let until = lasts.map(|lasts| now.after(since.left(lasts, &now)).at);
    let since = (since != Stamp::NEVER).then(|| now.before(since.until(&now)).at);
    let message = message.to_owned();
    Reason { author, holds: true, since, message, until, rule: None, stage: None, times: None }
}
