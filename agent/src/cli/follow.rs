//! Follows a drain to its end and shows its progress: one line that changes on a terminal, a line now and then
//! elsewhere.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use ratatui::crossterm::terminal;
use serde_json::Value;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{sleep, timeout},
};

use super::{
    client::Client,
    failure::Failure,
    output::{duration, note},
};
use crate::{
    model::{OperationPhase, Target, words::plural},
    view::operations::{Operation, Remaining},
};

/// How long the agent may be away: when a drain is to begin, and after the drain's deadline.
const AGENT_AWAY: Duration = Duration::from_secs(10);
/// How long an answer may be late.
const LATE: Duration = Duration::from_secs(5);
const SECOND: Duration = Duration::from_secs(1);
/// Least time between two lines where no terminal is; a new phase is shown at once.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Begins an operation. The request is sent again while no agent takes it: the agent may be being upgraded.
///
/// # Errors
/// When the agent refuses, or cannot be reached until patience, or [`AGENT_AWAY`], is over.
pub async fn begin(
    client: &Client,
    target: &Target,
    (path, request): (&str, &Value),
    patience: Option<Duration>,
) -> Result<Operation, Failure> {
    let (start, patience) = (Instant::now(), patience.unwrap_or(AGENT_AWAY).min(AGENT_AWAY));
    let mut progress = Progress::new();
    loop {
        let answer = client.post(path, request).await;
        let left = patience.saturating_sub(start.elapsed());
        if left.is_zero() || !answer.as_ref().is_err_and(is_away) {
            progress.clear();
            return answer;
        }
        progress.show_away(&target.to_string(), start.elapsed(), left);
        sleep(left.min(SECOND / 2)).await;
    }
}

/// The operation as it is when it is finished, or when `patience` is over.
///
/// # Errors
/// When the agent cannot be reached until patience, or the deadline, is over; when somebody interrupts.
pub async fn follow(client: &Client, started: Operation, patience: Option<Duration>) -> Result<Operation, Failure> {
    let target = started.target.clone();
    let advice = goes_on(client, &started);
    let mut progress = Progress::new();
    let followed = tokio::select! {
        followed = watch(client, started, patience, &mut progress) => followed,
        signal = interrupted() => {
            progress.keep();
            let why = format!("{target} is not drained yet, and the drain goes on without this command\n{advice}");
            Err(signal.map_or_else(Failure::from, |signal| Failure::Interrupted(signal, why)))
        }
    };
    progress.clear();
    followed
}

/// How to look after a drain that goes on, and how to undo it.
pub fn goes_on(client: &Client, operation: &Operation) -> String {
    let look = client.verb(&format!("get operations {}", operation.id));
    let undo = client.verb(&format!("restore {}", operation.target));
    format!("  how far it is:  {look}\n  undo it:        {undo}")
}

async fn watch(
    client: &Client,
    mut now: Operation,
    patience: Option<Duration>,
    progress: &mut Progress,
) -> Result<Operation, Failure> {
    let patience = patience.and_then(|patience| Instant::now().checked_add(patience));
    let mut seen = Seen::of(&now);
    let mut away: Option<String> = None;
    while !now.is_finished() {
        // Without patience it gives up only while the agent is away, some time after the deadline that was heard last.
        let end = patience.or(away.is_some().then(|| seen.deadline + AGENT_AWAY));
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        match (&away, left) {
            (Some(why), Some(Duration::ZERO)) => return Err(lost(client, &now, seen.at.elapsed(), why)),
            (None, Some(Duration::ZERO)) => break,
            (Some(_), _) => {
                progress.show_away(&now.target, seen.at.elapsed(), left.unwrap_or_default());
                sleep(SECOND / 2).await;
            }
            (None, _) => progress.show(&now),
        }
        away = match ask(client, &now.id, left.unwrap_or(SECOND).min(SECOND)).await {
            Reply::Now(operation) => {
                seen = Seen::of(&operation);
                now = *operation;
                None
            }
            Reply::Refused(failure) => return Err(failure),
            Reply::Away(why) => Some(why),
        };
    }
    Ok(now)
}

/// When the agent last answered, and the deadline that it told.
struct Seen {
    at: Instant,
    deadline: Instant,
}

impl Seen {
    fn of(operation: &Operation) -> Self {
        let at = Instant::now();
        Self { at, deadline: at.checked_add(left(operation)).unwrap_or(at) }
    }
}

/// Whether no agent took the request. One that is stopping (503) may be back soon.
pub fn is_away(failure: &Failure) -> bool {
    match failure {
        Failure::Unreachable(_) => true,
        Failure::Refused(problem) => problem.status == 503,
        Failure::Usage(_)
        | Failure::TimedOut(_)
        | Failure::Interrupted(..)
        | Failure::Failed(_)
        | Failure::Unread
        | Failure::Differs
        | Failure::Unanswered(_) => false,
    }
}

enum Reply {
    Now(Box<Operation>),
    Refused(Failure),
    /// No agent is there, or none that answers.
    Away(String),
}

async fn ask(client: &Client, id: &str, pause: Duration) -> Reply {
    let path = format!("/v1/operations/{id}?wait=drained&timeout={}ms", pause.as_millis().max(1));
    match timeout(pause + LATE, client.get(&path)).await {
        Ok(Ok(operation)) => Reply::Now(Box::new(operation)),
        Ok(Err(failure @ Failure::Refused(_))) if !is_away(&failure) => Reply::Refused(failure),
        Ok(Err(failure)) => Reply::Away(failure.to_string()),
        Err(_) => Reply::Away(format!("no answer within {} s", (pause + LATE).as_secs())),
    }
}

fn lost(client: &Client, last: &Operation, since: Duration, why: &str) -> Failure {
    let since = seconds(since);
    let restarted = client.verb(&format!("get operations {}", last.id));
    anyhow::anyhow!(
        "the agent cannot be reached, and nobody knows whether {} is drained: {why}\n  {since} ago it was {}: {}\n  \
         the drain goes on when an agent runs again; then ask: {restarted}",
        last.target,
        last.phase.name(),
        last.message,
    )
    .into()
}

/// The signal that asks this command to end.
pub async fn interrupted() -> anyhow::Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let kind = tokio::select! {
        _ = interrupt.recv() => SignalKind::interrupt(),
        _ = terminate.recv() => SignalKind::terminate(),
    };
    Ok(u8::try_from(kind.as_raw_value()).unwrap_or_default())
}

/// Time to the deadline.
fn left(operation: &Operation) -> Duration {
    let deadline = operation.deadline.unwrap_or(operation.started_at);
    deadline.duration_since(Timestamp::now()).try_into().unwrap_or_default()
}

/// Shows the progress of a drain as lines of text, which the crate indicatif does not offer.
struct Progress {
    terminal: bool,
    /// Whether the last line is unfinished.
    open: bool,
    shown: Option<ShownCounts>,
    /// Phases that were shown already.
    phases: Vec<OperationPhase>,
    away: bool,
}

/// What the last line showed where no terminal is, and when.
struct ShownCounts {
    at: Instant,
    counts: Counts,
}

/// Another line is due when these differ.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Counts {
    phase: OperationPhase,
    total: u64,
    in_flight: Option<u64>,
    inbound: Option<u64>,
    flows: Option<u64>,
    closed: u64,
}

impl Counts {
    fn of(operation: &Operation) -> Self {
        let Operation { phase, remaining, .. } = operation;
        let Remaining { total, in_flight, inbound, flows, .. } = *remaining;
        Self { phase: *phase, total, in_flight, inbound, flows, closed: operation.closed() }
    }
}

impl Progress {
    fn new() -> Self {
        Self { terminal: stderr().is_terminal(), open: false, shown: None, phases: Vec::new(), away: false }
    }

    fn show(&mut self, operation: &Operation) {
        if self.terminal {
            self.draw(&line(operation, columns()));
        } else if self.is_worth_a_line(operation, Instant::now()) {
            note(line(operation, usize::MAX));
        }
    }

    fn show_away(&mut self, target: &str, since: Duration, left: Duration) {
        let (since, left) = (seconds(since), seconds(left));
        if self.terminal {
            self.draw(&fitting(format!("{target}: no agent for {since}, trying for {left} more"), columns()));
        } else if !self.away {
            note(format!("{target}: the agent cannot be reached, trying for {left} more"));
        }
        self.away = true;
    }

    /// Whether another line is due; notes it as shown then.
    fn is_worth_a_line(&mut self, operation: &Operation, now: Instant) -> bool {
        let counts = Counts::of(operation);
        let is_new = !self.phases.contains(&counts.phase) || std::mem::take(&mut self.away);
        let worth = self.shown.as_ref().is_none_or(|shown| {
            is_new || (shown.counts != counts && now.saturating_duration_since(shown.at) >= BETWEEN_LINES)
        });
        if worth {
            self.phases.push(counts.phase);
            self.shown = Some(ShownCounts { at: now, counts });
        }
        worth
    }

    fn draw(&mut self, line: &str) {
        // An unread line is no failure.
        let _ = write!(stderr(), "\r\x1b[K{line}");
        let _ = stderr().flush();
        self.open = true;
    }

    /// Finishes the line: what follows goes below it.
    fn keep(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(stderr());
        }
    }

    /// Clears the line: what follows takes its place.
    fn clear(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

/// Columns of the terminal less the last one, after which some terminals wrap.
fn columns() -> usize {
    terminal::size().map_or(79, |(columns, _)| usize::from(columns.max(20) - 1))
}

/// How far a drain has come, as much as fits into so many columns, the most important first.
fn line(operation: &Operation, columns: usize) -> String {
    let Operation { target, phase, remaining, .. } = operation;
    let mut line = format!("{target}: {}", phase.name());
    let mut parts = Vec::new();
    if let Some(flying) = remaining.in_flight {
        line += &format!(", {} left", remaining.total);
        parts.push(format!(" ({flying} in flight, {} idle)", remaining.quiet()));
        parts.extend(remaining.flows.map(|flows| format!(", {}", plural(flows, "flow"))));
        parts.extend(remaining.inbound.map(|inbound| format!(", {inbound} accepted here")));
    }
    if !operation.is_finished() && operation.deadline.is_some() {
        parts.push(format!(", {} to go", seconds(left(operation))));
    }
    if remaining.in_flight.is_some() {
        parts.push(format!(", {} closed", operation.closed()));
        let oldest = remaining.oldest_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        parts.extend(oldest.map(|age| format!(", oldest {}", seconds(age))));
    }
    for part in parts {
        if line.chars().count() + part.chars().count() <= columns {
            line += &part;
        }
    }
    fitting(line, columns)
}

/// Without fractions of seconds.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        few @ 0..60 => format!("{few}s"),
        many => duration(SignedDuration::from_secs(many.try_into().unwrap_or(i64::MAX))),
    }
}

fn fitting(line: String, columns: usize) -> String {
    if line.chars().count() <= columns {
        return line;
    }
    line.chars().take(columns.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closing() -> Operation {
        let operation = json!({
            "id": "op-1", "kind": "drain", "target": "node/a", "phase": "closingIdle",
            "startedAt": "2026-11-21T10:00:00Z", "finishedAt": null, "closedIdle": 4, "message": "",
            "remaining": {"total": 3, "inFlight": 1, "idle": 2, "inbound": 5, "oldestSeconds": 62.0},
        });
        serde_json::from_value(operation).unwrap()
    }

    #[test]
    fn a_line_says_what_is_left_and_fits() {
        let operation = closing();
        for (columns, wanted) in [
            (usize::MAX, "node/a: closing idle, 3 left (1 in flight, 2 idle), 5 accepted here, 4 closed, oldest 1m02s"),
            (79, "node/a: closing idle, 3 left (1 in flight, 2 idle), 5 accepted here, 4 closed"),
            (40, "node/a: closing idle, 3 left, 4 closed"),
            (20, "node/a: closing idl…"),
        ] {
            assert_eq!(line(&operation, columns), wanted);
        }
        let mut flowing = operation.clone();
        flowing.remaining.flows = Some(7);
        let wanted = "node/a: closing idle, 3 left (1 in flight, 2 idle), 7 flows, 5 accepted here";
        assert!(line(&flowing, usize::MAX).starts_with(wanted));
        let uncounted = Operation { remaining: Default::default(), ..operation };
        assert_eq!(line(&uncounted, 79), "node/a: closing idle");
    }

    #[test]
    fn a_log_gets_a_line_when_there_is_news_and_not_each_second() {
        let (mut operation, start) = (closing(), Instant::now());
        let mut progress = Progress { terminal: false, open: false, shown: None, phases: Vec::new(), away: false };
        let mut worth =
            |operation: &Operation, second| progress.is_worth_a_line(operation, start + Duration::from_secs(second));
        assert!(worth(&operation, 0), "the first");
        assert!(!worth(&operation, 60), "nothing new");
        operation.remaining.total = 2;
        assert!(worth(&operation, 61));
        operation.remaining.total = 1;
        assert!(!worth(&operation, 62), "too soon");
        operation.phase = OperationPhase::Waiting;
        assert!(worth(&operation, 63), "a new phase");
        operation.phase = OperationPhase::ClosingIdle;
        assert!(!worth(&operation, 64), "back and forth");
        assert!(worth(&operation, 73));
    }
}
