//! How an agent learns that a backend serves.

use std::{
    collections::{BTreeMap, HashSet},
    ops::RangeInclusive,
};

use hyper::{
    header::{HeaderName, HeaderValue},
    http::uri::PathAndQuery,
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Refusal, span::Span};

/// A backend takes connections only while it is ready. A new one is not, until the first probe or report says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Readiness {
    /// How it is found out.
    pub kind: ReadinessKind,
    /// Port that is probed instead of the backend's own (`tcp`, `http`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `http`: the method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<ProbeMethod>,
    /// `http`: path and query; `/` when not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `http`: headers of the request, `host` among them if need be.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// `http`: statuses that mean ready, as in `["200", "300-399"]`; `200-399` when not said. Redirects are not followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<String>,
    /// `http`: text that must stand in the first 64 KiB of the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// `exec`: a file of the agent's hook directory, and its arguments. It gets the backend in its environment; exit
    /// status 0 means ready.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Time between two probes.
    pub period: Span,
    /// Time after which a probe without an answer has failed.
    pub timeout: Span,
    /// Probes that must succeed in a row before the backend is ready.
    pub success_threshold: u32,
    /// Probes that must fail in a row before the backend is not ready any more.
    pub failure_threshold: u32,
    /// Time after the backend was added or restored in which failures are expected and not told. It begins anew with the
    /// agent.
    pub startup_grace: Span,
    /// Time between readiness and the first connection (delayed registration).
    pub delay: Span,
    /// Which agents probe.
    pub from: ProbeFrom,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ReadinessKind {
    /// A connection can be opened.
    Tcp,
    /// A request is answered as wanted.
    Http,
    /// A command of the agent's hook directory exits with 0.
    Exec,
    /// The application or a pipeline says so: `POST .../ready`.
    Report,
    /// Nobody looks: it is ready. Reports count all the same.
    #[default]
    None,
}

impl ReadinessKind {
    /// As in documents; the label `kind` of metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Exec => "exec",
            Self::Report => "report",
            Self::None => "none",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ProbeMethod {
    #[default]
    Get,
    Head,
    Post,
    Options,
}

/// Which agents probe a backend. The others take it for ready unless a report says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ProbeFrom {
    /// Every agent for itself: what it finds is true of its own host's paths.
    #[default]
    Everywhere,
    /// The agent of the backend's own node (`--node`).
    Node,
    /// A few agents of the fleet, chosen by rendezvous hashing: for each backend the `--probers` (3) of `--peers` whose
    /// hash with the backend is highest. Every agent has the same list, so that they agree without a word; a peer that
    /// leaves the list gives its own share to others and moves no other backend. An agent without `--peers` probes all.
    Peers,
}

impl Default for Readiness {
    fn default() -> Self {
        Self {
            kind: ReadinessKind::None,
            port: None,
            method: None,
            path: None,
            headers: BTreeMap::new(),
            status: Vec::new(),
            body: None,
            command: Vec::new(),
            period: Span::seconds(5),
            timeout: Span::seconds(1),
            success_threshold: 1,
            failure_threshold: 3,
            startup_grace: Span::ZERO,
            delay: Span::ZERO,
            from: ProbeFrom::Everywhere,
        }
    }
}

impl Readiness {
    /// Longest text of a header, path, argument or body, in bytes.
    const MAX_TEXT: usize = 4096;
    /// Most headers, statuses and words of a command.
    const MAX_ITEMS: usize = 64;
    /// What an answer of no particular status may have.
    const USUAL: RangeInclusive<u16> = 200..=399;

    /// # Errors
    /// A refusal that names the field at fault.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.check_kind()?;
        self.period.within("period", Span::millis(100), Span::seconds(3600))?;
        self.timeout.within("timeout", Span::millis(10), Span::seconds(60))?;
        self.startup_grace.within("startupGrace", Span::ZERO, Span::seconds(24 * 3600))?;
        self.delay.within("delay", Span::ZERO, Span::seconds(24 * 3600))?;
        for (field, threshold) in
            [("successThreshold", self.success_threshold), ("failureThreshold", self.failure_threshold)]
        {
            if !(1..=100).contains(&threshold) {
                return Err(Refusal::invalid(field, format!("{threshold}: write a number from 1 to 100")));
            }
        }
        if self.port == Some(0) {
            return Err(Refusal::invalid("port", "0: write a port from 1 to 65535"));
        }
        if let Some(path) = &self.path {
            check_path(path)?;
        }
        self.check_headers()?;
        self.check_answer()?;
        self.check_command()
    }

    /// Whether this agent or another one looks.
    pub fn is_probed(&self) -> bool {
        match self.kind {
            ReadinessKind::Tcp | ReadinessKind::Http | ReadinessKind::Exec => true,
            ReadinessKind::Report | ReadinessKind::None => false,
        }
    }

    /// Whether an answer with this status means ready.
    pub fn accepts(&self, status: u16) -> bool {
        match self.status.as_slice() {
            [] => Self::USUAL.contains(&status),
            some => some.iter().filter_map(|text| statuses(text)).any(|statuses| statuses.contains(&status)),
        }
    }

    /// The statuses that mean ready, as an operator writes them.
    pub fn wanted(&self) -> String {
        match self.status.as_slice() {
            [] => format!("{}-{}", Self::USUAL.start(), Self::USUAL.end()),
            some => some.join(", "),
        }
    }

    /// What a kind has no use for must not stand there: whoever wrote it meant something else.
    fn check_kind(&self) -> Result<(), Refusal> {
        let usual = Self::default();
        let [tcp, http, exec] = ["tcp", "http", "exec"];
        let said: [(&str, bool, &[&str]); 14] = [
            ("port", self.port.is_some(), &[tcp, http]),
            ("method", self.method.is_some(), &[http]),
            ("path", self.path.is_some(), &[http]),
            ("headers", !self.headers.is_empty(), &[http]),
            ("status", !self.status.is_empty(), &[http]),
            ("body", self.body.is_some(), &[http]),
            ("command", !self.command.is_empty(), &[exec]),
            ("period", self.period != usual.period, &[tcp, http, exec]),
            ("timeout", self.timeout != usual.timeout, &[tcp, http, exec]),
            ("successThreshold", self.success_threshold != usual.success_threshold, &[tcp, http, exec]),
            ("failureThreshold", self.failure_threshold != usual.failure_threshold, &[tcp, http, exec]),
            ("startupGrace", self.startup_grace != usual.startup_grace, &[tcp, http, exec]),
            ("delay", self.delay != usual.delay, &[tcp, http, exec]),
            ("from", self.from != usual.from, &[tcp, http, exec]),
        ];
        let kind = self.kind.name();
        for (field, is_said, kinds) in said {
            if is_said && !kinds.contains(&kind) {
                let message = format!("is for kind {}, and the kind here is {kind}", kinds.join(" or "));
                return Err(Refusal::invalid(field, message));
            }
        }
        Ok(())
    }

    fn check_headers(&self) -> Result<(), Refusal> {
        few("headers", self.headers.len())?;
        let mut seen = HashSet::new();
        for (name, value) in &self.headers {
            let field = || format!("headers.{name}");
            let Ok(known) = HeaderName::try_from(name.as_str()) else {
                // It may have the value in it.
                let message = "one of them has no name of a header: write letters, digits and dashes, then the value";
                return Err(Refusal::invalid("headers", message));
            };
            if !seen.insert(known.clone()) {
                return Err(Refusal::invalid(
                    field(),
                    "stands here twice: letters in upper or lower case are the same",
                ));
            }
            if FRAMING.contains(&known.as_str()) {
                return Err(Refusal::invalid(field(), "is written by the agent: leave it out"));
            }
            if value.len() > Self::MAX_TEXT || HeaderValue::try_from(value.as_str()).is_err() {
                let message =
                    "is no value of a header: write one line of at most 4096 bytes, without control characters";
                return Err(Refusal::invalid(field(), message));
            }
        }
        Ok(())
    }

    fn check_answer(&self) -> Result<(), Refusal> {
        few("status", self.status.len())?;
        for (index, text) in self.status.iter().enumerate() {
            if statuses(text).is_none() {
                let message =
                    format!("{text:?}: write a status from 100 to 599 such as \"200\", or a range such as \"200-399\"");
                return Err(Refusal::invalid(format!("status[{index}]"), message));
            }
        }
        match self.body.as_deref() {
            Some("") => {
                Err(Refusal::invalid("body", "is empty: write the text that must stand in the body, or leave it out"))
            }
            Some(_) if self.method == Some(ProbeMethod::Head) => {
                Err(Refusal::invalid("body", "an answer to HEAD has no body: leave it out, or write another method"))
            }
            Some(text) if text.len() > Self::MAX_TEXT => Err(Refusal::invalid("body", "is longer than 4096 bytes")),
            Some(_) | None => Ok(()),
        }
    }

    fn check_command(&self) -> Result<(), Refusal> {
        few("command", self.command.len())?;
        let Some(file) = self.command.first() else {
            if self.kind == ReadinessKind::Exec {
                return Err(Refusal::invalid("command", "is missing: name a file of the agent's hook directory"));
            }
            return Ok(());
        };
        if file.is_empty() || file == "." || file == ".." || file.contains('/') {
            let message = format!("{file:?}: name a file of the agent's hook directory, without a path");
            return Err(Refusal::invalid("command[0]", message));
        }
        for (index, word) in self.command.iter().enumerate() {
            if word.contains('\0') || word.len() > Self::MAX_TEXT {
                let message = "is no argument: at most 4096 bytes, none of them zero";
                return Err(Refusal::invalid(format!("command[{index}]"), message));
            }
        }
        Ok(())
    }
}

/// Headers that say where the request ends and what becomes of the connection.
const FRAMING: [&str; 5] = ["connection", "content-length", "transfer-encoding", "upgrade", "expect"];

fn few(field: &str, items: usize) -> Result<(), Refusal> {
    if items > Readiness::MAX_ITEMS {
        return Err(Refusal::invalid(field, format!("{items} items; at most {} are taken", Readiness::MAX_ITEMS)));
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), Refusal> {
    let is_good = path.starts_with('/') && path.len() <= Readiness::MAX_TEXT && PathAndQuery::try_from(path).is_ok();
    // A fragment is for whoever reads the answer, and is never sent.
    if !is_good || path.contains('#') {
        let message = format!("{path:?}: write a path such as /healthz, with a query if need be, escaped as in a URL");
        return Err(Refusal::invalid("path", message));
    }
    Ok(())
}

/// `200` or `200-399`.
fn statuses(text: &str) -> Option<RangeInclusive<u16>> {
    let status = |text: &str| {
        let status: u16 = text.parse().ok()?;
        (text.len() == 3 && (100..=599).contains(&status)).then_some(status)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (status(first)?, status(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests;
