//! `sluice drain`: empty a node or a backend, and wait until it is.

use std::time::{Duration, Instant};

use clap::{
    Args, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};
use jiff::SignedDuration;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    candidates,
    client::Client,
    failure::Failure,
    follow::{begin, follow, goes_on},
    names,
    output::{self, duration, fields},
    time_span,
    zero::{Terms, insist, path},
};
use crate::{
    model::{self, CloseInbound, IdleClose, OnDeadline, OperationPhase, Target, quiet, words::plural},
    view::operations::{Operation, Remaining},
};

/// Empty a node or a backend: no new connections, requests in flight are waited for, idle connections closed
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice drain node/node-1 --wait drained\n  sluice drain shop/n1 --deadline 5m --idle-close 10s\n  \
        sluice drain node/node-1 --idle-close never --on-deadline close\n\n\
        Whether a connection is idle is judged by what it sent and received last: fit for requests and answers in turn. \
        A service of other traffic (HTTP/2, WebSockets, subscriptions) says `protocol: stream`. Connections that look like \
        sessions (of a database, say) are left alone unless the service says `protocol: request`.\n\
        Exit codes with --wait drained: 0 drained; 3 something was left at the deadline, or after --timeout (the drain then goes on); \
        1 cancelled by a restore, or the agent could not be reached for the first 10s, until --timeout or 10s after the deadline; 4 a service would be \
        left without enough capacity (--force); 130 or 143 interrupted (the drain goes on)."
)]
pub struct DrainArguments {
    /// node/NODE or SERVICE/BACKEND
    #[arg(value_parser = names::target, add = candidates::targets())]
    target: Target,
    /// End after this time at the latest, 168h at most [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<String>,
    /// Close connections that were idle for this time, 100ms to 1h, or never [default: usual, which is 2s or what the service says]
    #[arg(long, value_name = "TIME|usual|never", value_parser = idle_close)]
    idle_close: Option<IdleClose>,
    /// What becomes of the connections that are left at the deadline [default: keep]
    #[arg(long, value_parser = choice::<OnDeadline>(["keep", "close"]), hide_possible_values = true, value_name = "keep|close")]
    on_deadline: Option<OnDeadline>,
    /// What becomes of idle connections from callers that nobody steers; closing them at this end can lose a request
    /// [default: never]
    #[arg(long, value_parser = choice::<CloseInbound>(["never", "idle"]), hide_possible_values = true, value_name = "never|idle")]
    close_inbound: Option<CloseInbound>,
    /// Return when no new connection comes, or when nothing is left [default: zeroed]
    #[arg(long, value_enum, hide_possible_values = true, value_name = "zeroed|drained")]
    wait: Option<DrainWait>,
    /// With --wait drained: wait no longer than this, 0s to look once; the drain goes on [default: until the drain ends].
    /// Otherwise: how long the agent may take to answer [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = patience)]
    timeout: Option<String>,
    #[command(flatten)]
    terms: Terms,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DrainWait {
    Zeroed,
    Drained,
}

impl DrainArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        self.check()?;
        let path = path(&self.target, "/drain");
        if self.dry_run {
            let plan: Value = client.post(&format!("{path}?dryRun=true"), &self.request()).await.map_err(insist)?;
            return output::print(&output::json(&plan)?);
        }
        let asked = Instant::now();
        let started: Operation = match self.wait {
            Some(_) => begin(client, &self.target, (&path, &self.request()), self.patience()).await,
            None => client.post(&path, &self.request()).await,
        }
        .map_err(insist)?;
        if self.wait != Some(DrainWait::Drained) {
            if self.output.print(&started)? {
                return Ok(());
            }
            return output::print(&format!("{}{}\n", summary(&started), goes_on(client, &started)));
        }
        let patience = self.patience().map(|patience| patience.saturating_sub(asked.elapsed()));
        let ended = follow(client, started, patience).await?;
        let shown = match self.output.print(&ended) {
            Ok(false) => output::print(&summary(&ended)),
            other => other.map(drop),
        };
        match ended.phase {
            OperationPhase::Drained => shown,
            OperationPhase::Cancelled => {
                Err(anyhow::anyhow!("{} is not drained: {}", ended.target, ended.message).into())
            }
            OperationPhase::DeadlineReached => {
                Err(Failure::TimedOut(format!("{}: {}{}", ended.target, ended.message, self.advice(client, &ended))))
            }
            OperationPhase::Zeroed
            | OperationPhase::Waiting
            | OperationPhase::ClosingIdle
            | OperationPhase::Restored => {
                let goes_on = goes_on(client, &ended);
                Err(Failure::TimedOut(format!(
                    "{} is not drained yet, and the drain goes on: {}\n{goes_on}",
                    ended.target, ended.message
                )))
            }
        }
    }

    fn check(&self) -> Result<(), Failure> {
        let usage = |why: &str| Err(Failure::Usage(why.to_owned()));
        let looks_once = self.timeout.as_deref().and_then(time_span).is_some_and(|span| span.is_zero());
        if looks_once && !self.waits_with_patience() {
            return usage("--timeout 0s looks once: it needs --wait drained");
        }
        if self.idle_close.zip(self.close_inbound).is_some_and(|(idle, inbound)| idle.rules_out(inbound)) {
            return usage("--close-inbound idle closes nothing with --idle-close never: leave one of them out");
        }
        Ok(())
    }

    /// Whether --timeout is that of the wait.
    pub(super) fn waits_with_patience(&self) -> bool {
        self.wait == Some(DrainWait::Drained)
    }

    fn patience(&self) -> Option<Duration> {
        time_span(self.timeout.as_ref()?).filter(|_| self.waits_with_patience())
    }

    /// What to do about connections that are left at the deadline. A drain that was begun before keeps options that
    /// this command leaves out; what it has closed is all that shows them.
    fn advice(&self, client: &Client, ended: &Operation) -> String {
        let Operation { remaining, closed_late, closed_inbound, .. } = ended;
        let mut advice = String::new();
        if remaining.total > 0 {
            let list = match &self.target {
                Target::Node(node) => format!("connections --node {node}"),
                Target::Backend { service, backend } => format!("connections --service {service} --backend {backend}"),
            };
            advice += &format!("\n  {} steered: {} says whose", remaining.total, client.verb(&list));
            if !matches!(self.on_deadline, Some(OnDeadline::Close)) && *closed_late == 0 {
                advice += "; unless the drain had it already, --on-deadline close closes what is left";
            }
        }
        // Connections from this host's own callers are accepted here too.
        let strangers = remaining.inbound.unwrap_or(0).saturating_sub(remaining.total);
        if strangers > 0 {
            let flying = remaining.inbound_in_flight.unwrap_or(0).saturating_sub(remaining.in_flight.unwrap_or(0));
            advice += &format!(
                "\n  {strangers} accepted here ({flying} in flight): of callers that no agent steers, of another service with the same backend \
                 address, or given up by their callers and not closed by the server (CLOSE-WAIT). `ss -tnp` where the server runs says whose"
            );
            if !matches!(self.close_inbound, Some(CloseInbound::Idle)) && *closed_inbound == 0 {
                advice += "; unless the drain had it already, --close-inbound idle closes the idle ones";
            }
        }
        advice
    }

    fn request(&self) -> Value {
        let mut request = self.terms.request();
        let idle_close = self.idle_close.map(|idle_close| match idle_close {
            IdleClose::Never => Value::Null,
            IdleClose::Usual => json!("usual"),
            IdleClose::After(time) => json!(quiet::text(time)),
        });
        for (field, value) in [
            ("deadline", self.deadline.as_ref().map(|time| json!(time))),
            ("idleClose", idle_close),
            ("onDeadline", self.on_deadline.map(|what| json!(what))),
            ("closeInbound", self.close_inbound.map(|what| json!(what))),
        ] {
            if let Some(value) = value {
                request[field] = value;
            }
        }
        request
    }
}

fn summary(operation: &Operation) -> String {
    let end = operation.finished_at.unwrap_or(operation.started_at);
    let mut lines = vec![("Operation", operation.id.clone()), ("State", operation.message.clone())];
    if operation.phase == OperationPhase::DeadlineReached {
        lines.push(("Left", left(&operation.remaining)));
    }
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
    let Remaining { total, in_flight, inbound, flows, .. } = remaining;
    let Some(flying) = in_flight else { return "not counted yet".to_owned() };
    let steered = format!("{} ({flying} in flight, {} idle)", plural(*total, "steered connection"), remaining.quiet());
    let flows = flows.map(|flows| format!(", {} of datagrams", plural(flows, "flow"))).unwrap_or_default();
    match inbound {
        Some(inbound) => format!("{steered}{flows}, {inbound} accepted by its backends here"),
        None => steered + &flows,
    }
}

fn deadline(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if !span.is_negative() && span <= model::Drain::MAX_DEADLINE => Ok(text.to_owned()),
        _ => Err("write a time from now such as 60s or 5m, at most 168h".to_owned()),
    }
}

fn patience(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if !span.is_negative() => Ok(text.to_owned()),
        _ => Err("write a time such as 90s or 5m, or 0s to look once".to_owned()),
    }
}

fn idle_close(text: &str) -> Result<IdleClose, String> {
    text.parse().map_err(|_| "write a time from 100ms to 1h, usual or never".to_owned())
}

/// One of the names that a field of the API takes.
fn choice<T: DeserializeOwned + Clone + Send + Sync>(names: [&'static str; 2]) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(names).try_map(|name| serde_json::from_value(name.into()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::tls::TlsOptions;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        drain: DrainArguments,
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
        for wrong in [
            "--deadline soon",
            "--deadline -5s",
            "--deadline 169h",
            "--for 9999999999999s",
            "--idle-close 1ms",
            "--on-deadline drop",
            "--wait restored",
            "--wait drained --timeout=-1s",
        ] {
            assert!(request(&format!("drain shop/n1 {wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_wrong_usage() {
        let check = |line: &str| Line::try_parse_from(line.split_whitespace()).unwrap().drain.check();
        let checked = check("drain shop/n1 --idle-close never --close-inbound idle");
        assert!(matches!(checked, Err(Failure::Usage(_))));
        assert!(check("drain shop/n1 --timeout 5s").is_ok(), "of the answer");
        assert!(matches!(check("drain shop/n1 --timeout 0s"), Err(Failure::Usage(_))));
        assert!(check("drain shop/n1 --wait drained --timeout 0s").is_ok(), "one look");
        assert!(check("drain shop/n1 --wait drained --timeout 5s --idle-close usual --close-inbound idle").is_ok());
    }

    #[test]
    fn the_end_says_what_is_left_and_what_to_do() {
        let ended: Operation = serde_json::from_value(json!({
            "id": "op-1", "kind": "drain", "target": "shop/n1", "phase": "deadlineReached",
            "startedAt": "2026-11-21T10:00:00Z", "finishedAt": "2026-11-21T10:00:09Z", "closedIdle": 4, "message": "",
            "remaining": {"total": 1, "inFlight": 1, "idle": 0, "inbound": 5, "flows": 2},
        }))
        .unwrap();
        let text = summary(&ended);
        let left = "1 steered connection (1 in flight, 0 idle), 2 flows of datagrams, 5 accepted by its backends here";
        assert!(text.contains(left), "{text}");
        assert!(text.contains("4 idle, 0 at the deadline"), "{text}");
        let client = Client::new(None, None, None, &TlsOptions::default()).unwrap();
        let advice = |line: &str, ended: &Operation| {
            Line::try_parse_from(line.split_whitespace()).unwrap().drain.advice(&client, ended)
        };
        let text = advice("drain shop/n1", &ended);
        for said in [
            "sluice connections --service shop --backend n1",
            "--on-deadline close",
            "CLOSE-WAIT",
            "--close-inbound idle",
        ] {
            assert!(text.contains(said), "{said} in {text}");
        }
        let closing = Operation { closed_late: 1, closed_inbound: 1, ..ended.clone() };
        for text in [
            advice("drain shop/n1 --on-deadline close --close-inbound idle", &ended),
            advice("drain shop/n1", &closing),
        ] {
            assert!(!text.contains("--on-deadline") && !text.contains("--close-inbound"), "{text}");
        }
    }
}
