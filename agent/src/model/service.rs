//! Services, backends and nodes as the rest of the agent sees them.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::drain::EOF;
use utoipa::ToSchema;

use super::{Drain, Health, Name, Outlier, Readiness, Span, Warmup};

/// Index into the kernel's SERVICES.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServiceId(pub u32);

/// Index into the kernel's BACKENDS and COUNTERS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u32);

/// Index into the kernel's NODES. 0 is the node of backends that name none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
}

/// An address that applications connect to. Written `10.96.0.10:80`, `[fd00::1]:80` or `10.96.0.10:53/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Never an IPv4-mapped IPv6 address: that is its IPv4 address.
    pub address: SocketAddr,
    pub protocol: Protocol,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Balance {
    /// In turn, by weight: any window of connections has the shares exactly. A caller that opens connections in a pattern
    /// falls into step.
    #[default]
    Spread,
    /// In turn, by weight, in an order that nobody falls into step with: any window of connections has the shares, to within
    /// two, and callers that open connections in patterns have them too.
    Scatter,
    /// Each connection for itself, by weight.
    Random,
    /// By the client: one client stays with one backend while weights move elsewhere.
    Hash,
}

/// What happens to a connection when no backend is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnNoBackend {
    /// The caller gets ECONNREFUSED at once.
    #[default]
    Refuse,
    /// The call goes to the original address.
    Pass,
}

/// What the connections of a service carry, as far as a drain has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ServiceProtocol {
    /// Requests and answers in turn: between them a connection is idle, whoever spoke first.
    Request,
    /// Anything else (subscriptions, WebSockets, long answers with pauses): quiet says nothing.
    Stream,
}

/// How a drain closes an idle connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum CloseAs {
    /// Both ends read the end of the stream, as if the other had closed. Where that cannot be done, it is aborted.
    #[default]
    Eof,
    /// The caller gets ECONNABORTED, the server a reset.
    Abort,
}

impl CloseAs {
    /// As the programs want it.
    pub fn allowed(self) -> u32 {
        match self {
            Self::Eof => EOF,
            Self::Abort => 0,
        }
    }
}

/// Where a service came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Origin {
    Api,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    pub name: Name,
    pub labels: BTreeMap<String, String>,
    /// Grows with every change of this service; its ETag.
    pub generation: u64,
    pub origin: Origin,
    /// The generation that its file's document made; 0 when no file brought it.
    pub applied: u64,
    pub frontends: Vec<Frontend>,
    pub balance: Balance,
    pub on_no_backend: OnNoBackend,
    /// 0..=100.
    pub min_ready_percent: u8,
    /// When the service does not say, sessions are recognised.
    pub protocol: Option<ServiceProtocol>,
    /// Quiet after which a drain may close an idle connection, in ms, when the service says so.
    pub idle_close: Option<u32>,
    pub close_as: CloseAs,
    /// Time for which an answered flow of datagrams may be quiet, when the service says so.
    pub flow_timeout: Option<Span>,
    pub health_policy: HealthPolicy,
    /// Never empty: a service without groups in its document has one, named `default`, of weight 1.
    pub groups: Vec<Group>,
    /// Whether the document named the groups.
    pub groups_given: bool,
    /// In the document's order.
    pub backends: Vec<Backend>,
}

impl Service {
    /// Whether it was changed over the API since its file's document was applied.
    pub fn is_edited(&self) -> bool {
        matches!(self.origin, Origin::File(_)) && self.applied != self.generation
    }

    /// Whether answered flows of datagrams stay with a backend that is zeroed or has no weight.
    pub fn keeps_flows(&self) -> bool {
        self.protocol == Some(ServiceProtocol::Stream) && self.frontends.iter().any(|f| f.protocol == Protocol::Udp)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: Name,
    /// 0..=1,000,000.
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Stands for (service, name, address): another address is another backend with another id and new counters.
    pub id: BackendId,
    pub name: Name,
    /// Never an IPv4-mapped IPv6 address.
    pub address: SocketAddr,
    /// `NodeId(0)` when the document names no node.
    pub node: NodeId,
    /// Index into [`Service::groups`].
    pub group: u32,
    /// Administrative weight, 0..=1,000,000.
    pub weight: u32,
    /// Overlays the weight and never overwrites it.
    pub zero: Option<Arc<Zero>>,
    /// What it has instead of its service's.
    pub own: Option<Arc<Own>>,
    /// What is known of its fitness; absent while there is nothing to say against it.
    pub health: Option<Arc<Health>>,
}

/// How the backends of a service are watched and warmed up, as its document says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HealthPolicy {
    pub warmup: Option<Arc<Warmup>>,
    pub readiness: Option<Arc<Readiness>>,
    pub outlier: Option<Arc<Outlier>>,
    /// Percent; 0 is never.
    pub panic_threshold: u8,
    pub turn_time: bool,
}

/// What one backend has instead of its service's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub warmup: Option<Arc<Warmup>>,
    pub readiness: Option<Arc<Readiness>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub name: Name,
    pub labels: BTreeMap<String, String>,
    /// Whether a document declares it; otherwise it lives while a backend names it or a zero holds it.
    pub declared: bool,
    pub generation: u64,
    pub zero: Option<Arc<Zero>>,
}

/// An operator's zero: no new connections, existing ones untouched unless it is a drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Zero {
    pub owner: String,
    pub reason: String,
    pub since: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    /// Whether the target is emptied too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<Drain>,
}

impl Zero {
    /// Whether its drain is over: flows that a service keeps stay no longer.
    pub fn has_drained(&self) -> bool {
        self.drain.as_ref().is_some_and(|drain| drain.end.is_some())
    }
}
