//! Reports of readiness: the application, or whoever deploys it, says so itself.

use std::time::Duration;

use axum::{extract::State, response::Response};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    App, backends,
    parameters::WriteQuery,
    problem::{Problem, WriteProblems},
    times,
    views::BackendView,
    write::Write,
};
use crate::{
    host::clock,
    model::{Change, HealthReport, HealthUpdate, Name, ReadinessKind, Report, Reported, Span, Stamp, Target, Zero},
};

/// Shortest and longest lease.
const LEASE: std::ops::RangeInclusive<Span> = Span::millis(100)..=Span::MOST;
/// How far ahead of this host's clock another one's may be.
const SKEW: SignedDuration = SignedDuration::from_secs(60);
/// Beginnings of a process that differ by less are the same: an uptime is a moment old when it is read.
const SAME: Duration = Duration::from_secs(2);

/// What is reported. All of it may be left out: it is ready then, for good.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ReadyRequest {
    /// `false` keeps new connections away until `true` is reported, whatever probes find.
    ready: bool,
    /// It must be reported again within this time, or counts as not ready.
    lease: Option<Span>,
    /// Why; kept and shown.
    reason: String,
    /// When the process began, for a warm-up with `start: process`.
    #[serde(deserialize_with = "times::started_at")]
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// The same as a time before now.
    #[serde(deserialize_with = "times::uptime")]
    #[schema(value_type = Option<String>, example = "90s")]
    uptime: Option<Duration>,
}

impl Default for ReadyRequest {
    fn default() -> Self {
        Self { ready: true, lease: None, reason: String::new(), started_at: None, uptime: None }
    }
}

/// Reports that a backend is ready, or that it is not. Any kind of readiness takes reports, beside what it finds itself;
/// a zero is untouched.
#[utoipa::path(post, path = "/v1/services/{service}/backends/{backend}/ready", tag = "services",
    params(("service" = Name, Path), ("backend" = Name, Path), WriteQuery),
    request_body(content((ReadyRequest = "application/json"))),
    responses((status = 200, description = "The kernel has it, or with dryRun the plan", body = BackendView),
        WriteProblems))]
pub async fn ready(State(app): State<App>, target: Target, write: Write) -> Result<Response, Problem> {
    let request: ReadyRequest = write.input.options()?;
    let now = clock::stamp();
    let started = request.check(now)?;
    let published = app.handle.published();
    let (service, backend) = backends::find(&published.state, &target)?;
    let kind = service.readiness(backend).map_or(ReadinessKind::None, |readiness| readiness.kind);
    let known = backend.health.as_ref().and_then(|health| health.report.as_ref());
    let report = HealthReport::Report(request.report(kind, known, started, now));
    let change = Change::UpdateHealth { updates: vec![HealthUpdate { backend: backend.id, report }] };
    write.make(&app, change, |_| None, |done| backends::show(&app, &done.published, &target)).await
}

impl ReadyRequest {
    /// When the process began, if that was said.
    fn check(&self, now: Stamp) -> Result<Option<Stamp>, Problem> {
        let refuse = |field: &str, why: &str| Err(Problem::invalid(field, format!("{field}: {why}")));
        if self.lease.is_some_and(|lease| !LEASE.contains(&lease)) {
            return refuse("lease", "write a time from 100ms to 168h");
        }
        if self.lease.is_some() && !self.ready {
            return refuse("lease", "is how long ready holds; what is not ready stays so until ready is reported");
        }
        if self.reason.len() > Zero::MAX_REASON || self.reason.chars().any(char::is_control) {
            return refuse("reason", "write one line of plain text, of at most 1024 bytes");
        }
        match (self.started_at, self.uptime) {
            (Some(_), Some(_)) => refuse("uptime", "says the same as startedAt: write one of them"),
            (Some(at), None) if at.duration_since(now.at) > SKEW => refuse("startedAt", "is in the future"),
            (Some(at), None) => {
                let ago = Duration::try_from(now.at.duration_since(at)).unwrap_or(Duration::ZERO);
                Ok(Some(now.before(ago)))
            }
            (None, uptime) => Ok(uptime.map(|uptime| now.before(uptime))),
        }
    }

    /// What is so from now on; nothing, when there is nothing to remember.
    fn report(self, kind: ReadinessKind, known: Option<&Report>, started: Option<Stamp>, now: Stamp) -> Option<Report> {
        let Self { ready, lease, reason, .. } = self;
        let state = if ready { Reported::Ready } else { Reported::NotReady };
        // A backend that is ready again, with no word on its start, is the same process as before.
        let before = known.and_then(|known| known.started);
        let is_same = |a: Stamp, b: Stamp| a.until(&b).max(b.until(&a)) < SAME;
        let started = match (started, before) {
            (Some(said), Some(before)) if is_same(said, before) => Some(before),
            (said, before) => said.or(before),
        };
        if ready && lease.is_none() && started.is_none() && kind != ReadinessKind::Report {
            return None;
        }
        let message = match (reason, ready) {
            (reason, _) if !reason.is_empty() => reason,
            (_, true) => "reported ready".to_owned(),
            (_, false) => "reported not ready".to_owned(),
        };
        let report = Report { since: now, state, message, lease, started };
        // Ready reported again without a lease holds since the first report.
        let again = known.filter(|known| lease.is_none() && Report { since: known.since, ..report.clone() } == **known);
        Some(again.cloned().unwrap_or(report))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(body: &str, kind: ReadinessKind, known: Option<&Report>, now: Stamp) -> Option<Report> {
        let request: ReadyRequest = serde_json::from_str(body).unwrap();
        let started = request.check(now).map_err(|problem| problem.detail).unwrap();
        request.report(kind, known, started, now)
    }

    #[test]
    fn what_needs_no_remembering_is_forgotten() {
        let now = Stamp::test(0);
        assert_eq!(report("{}", ReadinessKind::Tcp, None, now), None);
        let leased = report(r#"{"lease": "30s"}"#, ReadinessKind::Tcp, None, now).unwrap();
        assert_eq!((leased.state, leased.lease), (Reported::Ready, Some(Span::seconds(30))));
        assert_eq!(report("{}", ReadinessKind::Tcp, Some(&leased), now), None, "a lease ends with that");
        assert_eq!(report("{}", ReadinessKind::Report, None, now).unwrap().message, "reported ready");
    }

    #[test]
    fn a_repetition_changes_nothing_and_a_renewal_moves_the_lease() {
        let (then, now) = (Stamp::test(0), Stamp::test(10_000));
        let not = report(r#"{"ready": false}"#, ReadinessKind::None, None, then).unwrap();
        assert_eq!(report(r#"{"ready": false}"#, ReadinessKind::None, Some(&not), now), Some(not));
        let leased = report(r#"{"lease": "30s"}"#, ReadinessKind::None, None, then).unwrap();
        let renewed = report(r#"{"lease": "30s"}"#, ReadinessKind::None, Some(&leased), now).unwrap();
        assert_eq!(renewed.since, now);
    }

    #[test]
    fn the_beginning_of_a_process_is_kept_while_it_is_the_same() {
        let (then, now) = (Stamp::test(100_000), Stamp::test(110_000));
        let first = report(r#"{"uptime": "90s"}"#, ReadinessKind::None, None, then).unwrap();
        assert_eq!(first.started.unwrap().until(&then), Duration::from_secs(90));
        let silent = report(r#"{"lease": "9s"}"#, ReadinessKind::None, Some(&first), now).unwrap();
        assert_eq!(silent.started, first.started);
        let later = report(r#"{"uptime": "101s"}"#, ReadinessKind::None, Some(&first), now).unwrap();
        assert_eq!(later.started, first.started, "a second more or less");
        let new = report(r#"{"uptime": "1s"}"#, ReadinessKind::None, Some(&first), now).unwrap();
        assert_eq!(new.started.unwrap().until(&now), Duration::from_secs(1));
    }
}
