//! How an agent learns that a backend serves.

use std::collections::BTreeMap;

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
    /// Time after the backend was added in which failures are expected and not told.
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
    /// A few agents of the fleet (`--peers`, `--probers`), chosen by rendezvous hashing.
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
    /// # Errors
    /// A refusal that names the field at fault.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.period.within("period", Span::millis(100), Span::seconds(3600))?;
        self.timeout.within("timeout", Span::millis(10), Span::seconds(60))?;
        Ok(())
    }

    /// Whether this agent or another one looks.
    pub fn is_probed(&self) -> bool {
        match self.kind {
            ReadinessKind::Tcp | ReadinessKind::Http | ReadinessKind::Exec => true,
            ReadinessKind::Report | ReadinessKind::None => false,
        }
    }
}
