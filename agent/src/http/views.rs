//! Answers of the API, as the agent writes and the command line reads them.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    model::{
        Name, Node, Outcome, Readiness, Service, State, Warmup, address,
        document::{ApiVersion, BackendDocument, Metadata, NodeKind, ServiceKind, ServiceSpec},
    },
    view::{
        proof::ZeroStatus,
        status::{AdminState, BackendStatus, NodeStatus, ServiceStatus},
    },
};

/// A collection, in the order of names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct List<T> {
    pub items: Vec<T>,
}

/// A service's document with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceView {
    pub api_version: ApiVersion,
    pub kind: ServiceKind,
    pub metadata: Metadata,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

/// A node's document with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeView {
    pub api_version: ApiVersion,
    pub kind: NodeKind,
    pub metadata: Metadata,
    pub status: NodeStatus,
}

/// One backend of a service with its status.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    pub name: Name,
    #[serde(with = "address::text")]
    #[schema(value_type = String, example = "10.0.0.1:8080")]
    pub address: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    pub weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    pub status: BackendStatus,
}

/// A zero that the kernel has, with the proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZeroView {
    /// `node/NAME` or `SERVICE/BACKEND`.
    pub target: String,
    pub state: AdminState,
    /// Connections that are still there. A zero leaves them alone; a drain of the same target does not.
    pub active_connections: u64,
    /// Flows of unconnected datagram sockets that stay while answers come, until the deadline of a drain. Absent where no
    /// service of the target keeps flows (`protocol: stream` with a UDP frontend).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<u64>,
    /// `null`: there was none yet. With many in a moment it may be early by a tick of the kernel (1 to 10 ms).
    pub last_new_connection_at: Option<Timestamp>,
    #[serde(flatten)]
    pub zero: Option<ZeroStatus>,
    /// Id of the finished operation.
    pub operation: String,
}

/// A weight that is back in the kernel's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreView {
    /// `node/NAME` or `SERVICE/BACKEND`.
    pub target: String,
    /// Still `zero` when a backend's node is zeroed too.
    pub state: AdminState,
    /// Backends of the target that take connections only once they are found ready. A restore asks for a new probe of
    /// each that is probed.
    #[serde(default)]
    pub unhealthy: usize,
    pub restored_at: Timestamp,
    pub programmed_in_microseconds: u64,
    /// Id of the finished operation.
    pub operation: String,
}

/// What a change did, or with `dryRun` would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Effect {
    Created,
    Replaced,
    Unchanged,
    Deleted,
}

/// What a write with `dryRun` would do. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct DryRun {
    /// Always true.
    pub dry_run: bool,
    pub effect: Effect,
    /// Writes to the kernel's tables, in order.
    pub plan: Vec<String>,
    /// The document as it would be; absent when it would be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub document: Option<serde_json::Value>,
}

/// What a zero answers: what it did, or with `dryRun` what it would do.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant)]
pub enum ZeroAnswer {
    Done(ZeroView),
    Plan(DryRun),
}

/// What a restore answers: what it did, or with `dryRun` what it would do.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code)]
pub enum RestoreAnswer {
    Done(RestoreView),
    Plan(DryRun),
}

/// What became of many documents.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyView {
    pub dry_run: bool,
    /// In the order of the documents.
    pub items: Vec<ApplyItem>,
    /// From the reading of the request to the kernel's acknowledgement of all.
    pub programmed_in_microseconds: u64,
    /// With `dryRun`: writes to the kernel's tables, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApplyItem {
    /// `service/NAME` or `node/NAME`.
    pub object: String,
    pub effect: Effect,
    /// What may not be meant, such as a frontend that a program on this host listens on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// With `dryRun`, when something would change: the document as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub before: Option<serde_json::Value>,
    /// With `dryRun`, when something would change: the document as it would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub after: Option<serde_json::Value>,
}

impl ServiceView {
    pub fn new(state: &State, service: &Service, status: ServiceStatus) -> Self {
        let document = state.document(service).redacted();
        Self {
            api_version: document.api_version,
            kind: document.kind,
            metadata: document.metadata,
            spec: document.spec,
            status,
        }
    }
}

impl NodeView {
    pub fn new(node: &Node, status: NodeStatus) -> Self {
        let document = node.document();
        Self { api_version: document.api_version, kind: document.kind, metadata: document.metadata, status }
    }
}

impl BackendView {
    pub fn new(document: BackendDocument, status: BackendStatus) -> Self {
        let BackendDocument { name, address, node, group, weight, warmup, readiness } = document.redacted();
        Self { name, address, node, group, weight, warmup, readiness, status }
    }
}

impl From<Outcome> for Effect {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Created => Self::Created,
            Outcome::Replaced => Self::Replaced,
            Outcome::Unchanged => Self::Unchanged,
            Outcome::Deleted => Self::Deleted,
        }
    }
}

impl Effect {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}
