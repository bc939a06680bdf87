//! `sluice zero`: no new connections for a node or a backend, with the proof.

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{
    candidates,
    client::{Client, encode},
    describe,
    failure::Failure,
    names,
    output::{self, duration, fields},
};
use crate::{http::views::ZeroView, model::Target, view::status::AdminState};

/// Give no new connections to a node or a backend, and show the proof
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice zero node/node-1 --reason 'kernel upgrade' --for 2h\n  sluice zero shop/n1\n\n\
        The configuration keeps the weight: `sluice restore` gives it back. Existing connections are untouched."
)]
pub struct ZeroArguments {
    /// node/NODE or SERVICE/BACKEND
    #[arg(value_parser = names::target, add = candidates::targets())]
    target: Target,
    #[command(flatten)]
    terms: Terms,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

/// What a zero and a drain say of themselves.
#[derive(Debug, Args)]
pub struct Terms {
    /// Why; kept and shown
    #[arg(long)]
    reason: Option<String>,
    /// Who; kept and shown [default: you]
    #[arg(long)]
    owner: Option<String>,
    /// Restore it by itself after this time, such as 15m
    #[arg(long = "for", value_name = "TIME", value_parser = span)]
    duration: Option<String>,
    /// Do it even if a service is left without enough capacity
    #[arg(long)]
    force: bool,
}

impl Terms {
    /// As the API takes it.
    pub fn request(&self) -> Value {
        let owner = self.owner.clone().or_else(user).unwrap_or_default();
        let mut request = json!({ "owner": owner, "force": self.force });
        if let Some(reason) = &self.reason {
            request["reason"] = json!(reason);
        }
        if let Some(duration) = &self.duration {
            request["expires"] = json!(duration);
        }
        request
    }
}

impl ZeroArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let request = self.terms.request();
        let path = path(&self.target, "/zero");
        if self.dry_run {
            let plan: Value = client.post(&format!("{path}?dryRun=true"), &request).await.map_err(insist)?;
            return output::print(&output::json(&plan)?);
        }
        let view: ZeroView = client.post(&path, &request).await.map_err(insist)?;
        if self.output.print(&view)? {
            return proven(&view);
        }
        let drain = match view.zero.as_ref().and_then(|zero| zero.drain.as_ref()) {
            Some(id) => describe::drain(client, id).await?,
            None => None,
        };
        output::print(&proof(&view, drain.as_deref()))?;
        proven(&view)
    }
}

/// Says how to do it all the same, when a service would be left without enough capacity.
pub fn insist(failure: Failure) -> Failure {
    match failure {
        // Other conflicts are not overcome by it.
        Failure::Refused(mut problem) if problem.status == 409 && problem.detail.ends_with("or force it") => {
            problem.detail += " (--force)";
            Failure::Refused(problem)
        }
        other => other,
    }
}

/// A time span as the API takes it.
pub fn span(text: &str) -> Result<String, String> {
    match text.parse::<SignedDuration>() {
        Ok(span) if span.is_positive() && Timestamp::now().checked_add(span).is_ok() => Ok(text.to_owned()),
        _ => Err("write a time span such as 90s, 15m or 2h".to_owned()),
    }
}

/// Path of a target, with what follows.
pub fn path(target: &Target, rest: &str) -> String {
    match target {
        Target::Node(node) => format!("/v1/nodes/{}{rest}", encode(node.as_str())),
        Target::Backend { service, backend } => {
            format!("/v1/services/{}/backends/{}{rest}", encode(service.as_str()), encode(backend.as_str()))
        }
    }
}

/// Who runs this, also through sudo.
fn user() -> Option<String> {
    ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
}

/// A zero that is not proven is in the tables and did not do what was asked for.
fn proven(view: &ZeroView) -> Result<(), Failure> {
    match view.zero.as_ref().and_then(|zero| zero.unproven.as_ref()) {
        Some(why) => Err(anyhow::anyhow!("{} may get new connections: {why}", view.target).into()),
        None => Ok(()),
    }
}

fn proof(view: &ZeroView, drain: Option<&str>) -> String {
    let Some(zero) = &view.zero else { return format!("{} is {}\n", view.target, view.state.name()) };
    let last = match view.last_new_connection_at {
        Some(at) if at <= zero.zeroed_at => {
            format!("{at:.3}, {} before the zero", duration(zero.zeroed_at.duration_since(at)))
        }
        Some(at) => format!("{at:.3}, {} after the zero", duration(at.duration_since(zero.zeroed_at))),
        None => "never".to_owned(),
    };
    let mut lines = vec![
        ("In the kernel", format!("{:.6}, {} us after the request", zero.zeroed_at, zero.programmed_in_microseconds)),
        ("Last new connection", last),
        ("New since the zero", zero.new_connections_since_zero.to_string()),
    ];
    lines.extend(zero.unproven.clone().map(|why| ("Not proven", why)));
    let active = view.active_connections;
    match (drain, view.state) {
        (Some(drain), AdminState::Draining) => {
            lines.push(("Still active", format!("{active}, and it is being drained already")));
            lines.push(("Drain", drain.to_owned()));
        }
        (Some(drain), _) => lines.extend([("Still active", active.to_string()), ("Drain", drain.to_owned())]),
        (None, _) => lines.push(("Still active", format!("{active}, untouched"))),
    }
    if let Some(flows) = view.flows {
        let until =
            if drain.is_some() { "until the drain's deadline" } else { "`sluice drain` moves them at its deadline" };
        lines.push(("Datagram flows", format!("{flows} stay while they are answered; {until}")));
    }
    if let Some(at) = zero.expires_at {
        lines.push(("Until", format!("{at:.0}")));
    }
    let is =
        if zero.unproven.is_some() { "is zeroed in the kernel's tables, which may not be enough" } else { "is zeroed" };
    format!("{} {is}\n{}", view.target, fields(&lines))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;
    use crate::http::problem::Problem;

    #[test]
    fn force_is_advised_where_it_helps() {
        let told = |detail: &str| {
            let problem = Problem { services: vec![], ..Problem::new(StatusCode::CONFLICT, detail) };
            insist(problem.into()).to_string()
        };
        assert_eq!(told("open other backends first, or force it"), "open other backends first, or force it (--force)");
        assert_eq!(told("apply them with --accept-shrink"), "apply them with --accept-shrink");
    }

    #[test]
    fn targets_have_paths() {
        let path_of = |target: &str| path(&target.parse().unwrap(), "/zero");
        assert_eq!(path_of("node/node-1"), "/v1/nodes/node-1/zero");
        assert_eq!(path_of("shop/n1"), "/v1/services/shop/backends/n1/zero");
    }

    #[test]
    fn the_proof_says_when_the_last_connection_came() {
        let mut view: ZeroView = serde_json::from_value(json!({
            "target": "node/node-1", "state": "zero", "activeConnections": 7, "operation": "op-1",
            "lastNewConnectionAt": "2026-11-21T10:00:00Z", "zeroed": "node/node-1", "zeroedAt": "2026-11-21T10:00:01.5Z",
            "programmedInMicroseconds": 312, "newConnectionsSinceZero": 0, "owner": "ann", "reason": "",
        }))
        .unwrap();
        let text = proof(&view, None);
        assert_eq!(
            text,
            "node/node-1 is zeroed\n\
             In the kernel:        2026-11-21T10:00:01.500000Z, 312 us after the request\n\
             Last new connection:  2026-11-21T10:00:00.000Z, 1.5s before the zero\n\
             New since the zero:   0\n\
             Still active:         7, untouched\n"
        );
        assert!(proven(&view).is_ok());
        let mut unsteered = view.clone();
        unsteered.zero.as_mut().unwrap().unproven = Some("connect4 is not attached".into());
        let text = proof(&unsteered, None);
        assert!(!text.contains("is zeroed\n") && text.contains("Not proven:           connect4 is not"), "{text}");
        assert!(proven(&unsteered).is_err());
        view.flows = Some(2);
        assert!(
            proof(&view, None).contains("Datagram flows:       2 stay while they are answered; `sluice drain` moves")
        );
        view.last_new_connection_at = None;
        let text = proof(&view, Some("op-7 (waiting)"));
        assert!(text.contains("Last new connection:  never") && !text.contains("untouched"), "{text}");
        assert!(text.contains("Drain:                op-7 (waiting)"), "{text}");
    }
}
