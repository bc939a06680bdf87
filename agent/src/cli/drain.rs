//! `sluice drain`: empty a node or a backend, and wait until it is.

use std::{
    io::{IsTerminal, Write, stderr},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::{
    client::Client,
    failure::Failure,
    output::{self, duration, fields, note},
    zero::{Terms, path, span},
};
use crate::{
    model::{Target, quiet},
    observe::operations::{Operation, Phase, Remaining},
};

/// An agent that is replaced during a drain is back after this time.
const AGENT_AWAY: Duration = Duration::from_secs(30);

/// Empty a node or a backend: no new connections, requests in flight are waited for, idle connections closed
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice drain node/node-1 --wait drained\n  sluice drain shop/n1 --deadline 5m --idle-close 10s\n  \
        sluice drain node/node-1 --idle-close never --on-deadline close\n\n\
        Whether a connection is idle is judged by what it sent and received last: fit for requests and answers in turn. \
        A service of other traffic (HTTP/2, WebSockets, subscriptions) says `protocol: stream`.\n\
        Exit codes with --wait drained: 0 drained, 3 something was left at the deadline, or after --timeout."
)]
pub struct Drain {
    /// node/NODE or SERVICE/BACKEND
    target: Target,
    /// End after this time at the latest [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<String>,
    /// Close connections that were idle for this time, or never [default: 2s, or what the service says]
    #[arg(long, value_name = "TIME|never", value_parser = idle_close)]
    idle_close: Option<String>,
    /// What becomes of the connections that are left at the deadline [default: keep]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "keep|close")]
    on_deadline: Option<OnDeadline>,
    /// What becomes of idle connections from callers that nobody steers; closing them at this end can lose a request
    /// [default: never]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "never|idle")]
    close_inbound: Option<CloseInbound>,
    /// Return when no new connection comes, or when nothing is left [default: zeroed]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "zeroed|drained")]
    wait: Option<Wait>,
    /// With --wait drained: give up waiting after this time; the drain goes on
    #[arg(long, value_name = "TIME", value_parser = span)]
    timeout: Option<String>,
    #[command(flatten)]
    terms: Terms,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum OnDeadline {
    Keep,
    Close,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CloseInbound {
    Never,
    Idle,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Wait {
    Zeroed,
    Drained,
}

impl Drain {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = path(&self.target, "/drain");
        if self.dry_run {
            let plan: Value = client.post(&format!("{path}?dryRun=true"), &self.request()).await?;
            return output::print(&output::json(&plan)?);
        }
        let started: Operation = client.post(&path, &self.request()).await?;
        if self.wait != Some(Wait::Drained) {
            if self.output.print(&started)? {
                return Ok(());
            }
            return output::print(&summary(&started));
        }
        let ended = self.follow(client, started).await?;
        let shown = match self.output.print(&ended) {
            Ok(false) => output::print(&summary(&ended)),
            other => other.map(drop),
        };
        match ended.phase {
            Phase::Drained => shown,
            Phase::Cancelled => Err(anyhow::anyhow!("{} is not drained: {}", ended.target, ended.message).into()),
            Phase::DeadlineReached => Err(Failure::TimedOut(format!("{}: {}", ended.target, ended.message))),
            _ => Err(Failure::TimedOut(format!(
                "{} is not drained yet, and the drain goes on: {}",
                ended.target, ended.message
            ))),
        }
    }

    fn request(&self) -> Value {
        let mut request = self.terms.request();
        let mut say = |field: &str, value: Option<&str>| {
            if let Some(value) = value {
                request[field] = json!(value);
            }
        };
        say("deadline", self.deadline.as_deref());
        say(
            "onDeadline",
            self.on_deadline.map(|what| match what {
                OnDeadline::Keep => "keep",
                OnDeadline::Close => "close",
            }),
        );
        say(
            "closeInbound",
            self.close_inbound.map(|what| match what {
                CloseInbound::Never => "never",
                CloseInbound::Idle => "idle",
            }),
        );
        match self.idle_close.as_deref() {
            Some("never") => request["idleClose"] = Value::Null,
            Some(time) => request["idleClose"] = json!(time),
            None => {}
        }
        request
    }

    /// Shows how far the drain has come, until it is finished or patience is over.
    async fn follow(&self, client: &Client, started: Operation) -> Result<Operation, Failure> {
        let begin = Instant::now();
        let patience: Option<SignedDuration> = self.timeout.as_ref().and_then(|text| text.parse().ok());
        let patience: Option<Duration> = patience.and_then(|patience| patience.try_into().ok());
        let mut progress = Progress::new();
        let (mut now, mut seen) = (started, Instant::now());
        while !now.is_finished() {
            progress.show(&now);
            let left = patience.map(|patience| patience.saturating_sub(begin.elapsed()));
            if left == Some(Duration::ZERO) {
                break;
            }
            let pause =
                left.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1)).max(Duration::from_millis(1));
            let path = format!("/v1/operations/{}?wait=drained&timeout={}ms", now.id, pause.as_millis());
            match client.get(&path).await {
                Ok(operation) => (now, seen) = (operation, Instant::now()),
                // The agent may be on its way back: what it began goes on.
                Err(Failure::Failed(error)) if seen.elapsed() < AGENT_AWAY => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    tracing::debug!("{error:#}");
                }
                Err(failure) => return Err(failure),
            }
        }
        progress.end();
        Ok(now)
    }
}

/// One line that changes on a terminal, a line for each change elsewhere.
struct Progress {
    terminal: bool,
    shown: String,
}

impl Progress {
    fn new() -> Self {
        Self { terminal: stderr().is_terminal(), shown: String::new() }
    }

    fn show(&mut self, operation: &Operation) {
        let line = line(operation);
        if self.terminal {
            // That nobody reads it is no failure.
            let _ = write!(stderr(), "\r\x1b[K{line}");
            let _ = stderr().flush();
        } else if line != self.shown {
            note(&line);
        }
        self.shown = line;
    }

    fn end(&self) {
        if self.terminal && !self.shown.is_empty() {
            let _ = write!(stderr(), "\r\x1b[K");
        }
    }
}

fn line(operation: &Operation) -> String {
    let remaining = &operation.remaining;
    if remaining.in_flight.is_none() {
        return format!("{}: {}", operation.target, operation.phase.name());
    }
    let (flying, idle) =
        (remaining.in_flight.unwrap_or(0), remaining.idle.unwrap_or(0) + remaining.datagrams.unwrap_or(0));
    let oldest = remaining.oldest_seconds.and_then(|seconds| SignedDuration::try_from_secs_f64(seconds).ok());
    let oldest = oldest.map(|age| format!(", oldest {}", duration(age))).unwrap_or_default();
    let inbound = remaining.inbound.map(|inbound| format!("; {inbound} accepted here")).unwrap_or_default();
    format!(
        "{}: {}, {} left ({flying} in flight, {idle} idle{oldest}), {} closed{inbound}",
        operation.target,
        operation.phase.name(),
        remaining.total,
        operation.closed_idle + operation.closed_late + operation.closed_inbound
    )
}

fn summary(operation: &Operation) -> String {
    let end = operation.finished_at.unwrap_or(operation.started_at);
    let mut lines = vec![
        ("Operation", operation.id.clone()),
        ("State", operation.message.clone()),
        ("Left", left(&operation.remaining)),
    ];
    if operation.is_finished() {
        let Operation { closed_idle, closed_late, closed_inbound, .. } = operation;
        let closed = format!("{closed_idle} idle, {closed_late} at the deadline, {closed_inbound} accepted here");
        lines.push(("Closed", closed));
        lines.push(("Took", duration(end.duration_since(operation.started_at))));
    } else if let Some(deadline) = operation.deadline {
        lines.push(("Deadline", format!("{deadline:.0}")));
    }
    format!("{}: {}\n{}", operation.target, operation.phase.name(), fields(&lines))
}

fn left(remaining: &Remaining) -> String {
    match (remaining.in_flight, remaining.inbound) {
        (None, _) => "not counted yet".to_owned(),
        (Some(_), inbound) => {
            format!("{} steered connections, {} accepted by its backends here", remaining.total, inbound.unwrap_or(0))
        }
    }
}

fn deadline(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if !span.is_negative() => Ok(text.to_owned()),
        _ => Err("write a time from now such as 60s or 5m".to_owned()),
    }
}

fn idle_close(text: &str) -> Result<String, String> {
    if text != "never" {
        quiet::parse(text).map_err(|why| format!("{why}, or never"))?;
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        drain: Drain,
    }

    #[test]
    fn what_is_said_is_asked_for_and_nothing_else() {
        let request = |line: &str| Line::try_parse_from(line.split_whitespace()).map(|line| line.drain.request());
        let bare = request("drain node/a --owner me").unwrap();
        assert_eq!(bare, json!({"owner": "me", "force": false}));
        let full = request(
            "drain shop/n1 --owner me --deadline 5m --idle-close never --on-deadline close --close-inbound idle --force",
        );
        let wanted = json!({"owner": "me", "force": true, "deadline": "5m", "idleClose": null, "onDeadline": "close",
            "closeInbound": "idle"});
        assert_eq!(full.unwrap(), wanted);
        for wrong in ["--deadline soon", "--deadline -5s", "--idle-close 1ms", "--on-deadline drop", "--wait restored"]
        {
            assert!(request(&format!("drain shop/n1 {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn progress_says_what_is_left() {
        let mut operation: Operation = serde_json::from_value(json!({
            "id": "op-1", "kind": "drain", "target": "node/a", "phase": "closingIdle",
            "startedAt": "2026-11-21T10:00:00Z", "finishedAt": null, "closedIdle": 4, "message": "",
            "remaining": {"total": 3, "inFlight": 1, "idle": 2, "inbound": 5, "oldestSeconds": 62.0},
        }))
        .unwrap();
        let text = "node/a: closing idle, 3 left (1 in flight, 2 idle, oldest 1m02s), 4 closed; 5 accepted here";
        assert_eq!(line(&operation), text);
        operation.phase = Phase::Drained;
        assert!(summary(&operation).contains("4 idle, 0 at the deadline"));
    }
}
