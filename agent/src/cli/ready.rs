//! `sluice ready`: report that a backend is ready, or that it is not.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{candidates, client::Client, failure::Failure, names, output, zero};
use crate::{
    http::views::BackendView,
    model::{Span, Target},
};

/// Report that a backend is ready for connections, or with --not that it is not
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice ready shop/n1 --lease 30s --uptime 90s\n  sluice ready shop/n1 --not --reason 'index is being built'\n\n\
        Beside this, probes and zeros count as before. Not ready holds until ready is reported; with --lease, ready must be \
        reported again within that time."
)]
pub struct ReadyArguments {
    /// SERVICE/BACKEND
    #[arg(value_name = "SERVICE/BACKEND", value_parser = backend, add = candidates::targets())]
    target: Target,
    /// It is not ready
    #[arg(long, conflicts_with = "lease")]
    not: bool,
    /// It counts as not ready unless it is reported again within this time, 100ms to 168h
    #[arg(long, value_name = "TIME", value_parser = lease)]
    lease: Option<String>,
    /// Why; kept and shown
    #[arg(long)]
    reason: Option<String>,
    /// When its process began, such as 2026-11-21T10:00:00Z
    #[arg(long, value_name = "TIMESTAMP", value_parser = timestamp, conflicts_with = "uptime")]
    started_at: Option<Timestamp>,
    /// How long its process has been running, such as 90s
    #[arg(long, value_name = "TIME", value_parser = uptime)]
    uptime: Option<String>,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

impl ReadyArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = zero::path(&self.target, "/ready");
        if self.dry_run {
            let plan: Value = client.post(&format!("{path}?dryRun=true"), &self.request()).await?;
            return output::print(&output::json(&plan)?);
        }
        let view: BackendView = client.post(&path, &self.request()).await?;
        if self.output.print(&view)? {
            return Ok(());
        }
        let said = match (self.not, &self.lease) {
            (true, _) => "not ready, until ready is reported".to_owned(),
            (false, Some(lease)) => format!("ready for {lease}"),
            (false, None) => "ready".to_owned(),
        };
        output::print(&format!("{} is reported {said}; its state is {}\n", self.target, view.status.state.name()))
    }

    fn request(&self) -> Value {
        let mut request = json!({ "ready": !self.not });
        let started_at = self.started_at.map(|at| at.to_string());
        for (field, value) in
            [("lease", &self.lease), ("reason", &self.reason), ("startedAt", &started_at), ("uptime", &self.uptime)]
        {
            if let Some(value) = value {
                request[field] = json!(value);
            }
        }
        request
    }
}

fn backend(text: &str) -> Result<Target, String> {
    match names::target(text) {
        Ok(target @ Target::Backend { .. }) => Ok(target),
        Ok(Target::Node(_)) => Err("a node is not reported: write SERVICE/BACKEND".to_owned()),
        Err(error) => Err(error),
    }
}

fn lease(text: &str) -> Result<String, String> {
    text.parse::<Span>().map(|_| text.to_owned())
}

fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|_| "write a time such as 2026-11-21T10:00:00Z".to_owned())
}

fn uptime(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if !span.is_negative() => Ok(text.to_owned()),
        _ => Err("write a time such as 90s or 2h".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        ready: ReadyArguments,
    }

    #[test]
    fn what_is_said_is_reported_and_nothing_else() {
        let request = |line: &str| Line::try_parse_from(line.split_whitespace()).map(|line| line.ready.request());
        assert_eq!(request("ready shop/n1").unwrap(), json!({"ready": true}));
        assert_eq!(request("ready shop/n1 --not --reason x").unwrap(), json!({"ready": false, "reason": "x"}));
        let full = request("ready shop/n1 --lease 30s --started-at 2026-11-21T10:00:00Z").unwrap();
        assert_eq!(full, json!({"ready": true, "lease": "30s", "startedAt": "2026-11-21T10:00:00Z"}));
        for wrong in ["node/n1", "shop", "shop/n1 --lease soon", "shop/n1 --not --lease 3s", "shop/n1 --uptime=-1s"] {
            assert!(request(&format!("ready {wrong}")).is_err(), "{wrong}");
        }
    }
}
