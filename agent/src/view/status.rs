//! Status of services, backends and nodes as the API shows it: what is desired, what the kernel holds and what really
//! happened, side by side. [`super::report`] fills it in.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    health::{HealthStatus, WarmingStatus},
    proof::ZeroStatus,
};
use crate::model::{Drain, DrainEnd, Name, Zero};

/// Where a service is from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OriginStatus {
    /// The watched file whose document it is; absent when it came over the API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// It was changed over the API since the file's document was applied: the file says something else.
    #[serde(default)]
    pub edited: bool,
    /// Why what the file says now is not in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How a service is doing. Shares are 0..=1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Grows with every change of the document.
    pub generation: u64,
    #[serde(default)]
    pub origin: OriginStatus,
    /// The generation that the kernel's table was built from; 0 while there is none.
    pub observed_generation: u64,
    /// When the kernel's table became current.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub programmed_at: Option<Timestamp>,
    /// Largest difference between a desired and a programmed share. 0 when the weights fit a table exactly.
    pub share_error: f64,
    /// Length of the kernel's table; 0 is the explicit empty table, when no backend is open.
    pub slots: u32,
    pub active_connections: u64,
    /// Connections and datagram flows since the backends were added.
    pub new_connections: u64,
    pub connect_failures: u64,
    /// Connections and datagrams that found no open backend.
    pub no_backend: u64,
    /// Backends that are not ready, or ejected.
    #[serde(default)]
    pub unhealthy: u32,
    /// So few backends are healthy that all of them serve.
    #[serde(default)]
    pub panic: bool,
    pub groups: Vec<GroupStatus>,
    pub backends: Vec<BackendStatus>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    pub name: Name,
    pub weight: u32,
    pub desired_share: f64,
    pub programmed_share: f64,
    /// As that of backends.
    pub observed_share: Option<f64>,
    /// No backend of the group is open: its share goes to the other groups.
    pub spilled: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    pub name: Name,
    pub state: AdminState,
    pub weight: u32,
    /// The weight after zero and every other factor.
    pub effective_weight: u32,
    /// Share that the document asks for, groups included.
    pub desired_share: f64,
    /// Share of the slots of the kernel's table.
    pub programmed_share: f64,
    /// Share of what was chosen since the kernel's table became current, and of the last 1,000 choices while those are
    /// fewer and the tables before it were of the same document with the same backends open, as in a warm-up. Absent
    /// while nothing was chosen.
    pub observed_share: Option<f64>,
    /// Share that the kernel's tables would have given of the same choices.
    #[serde(default)]
    pub expected_share: Option<f64>,
    /// Wilson's 95 % interval around the observed share.
    pub confidence95: [f64; 2],
    /// SYN sent, no answer yet.
    pub connecting: u64,
    pub active_connections: u64,
    /// Connections and datagram flows since the backend was added.
    pub new_connections: u64,
    pub connect_failures: u64,
    pub last_new_connection_at: Option<Timestamp>,
    /// Why it takes no connections though nobody zeroed it, or few; absent while there is nothing to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthStatus>,
    /// Only while it is warming up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warming: Option<WarmingStatus>,
    /// Only while zeroed, by itself or by its node.
    #[serde(flatten)]
    pub zero: Option<ZeroStatus>,
}

impl OriginStatus {
    /// In a few words.
    pub fn text(&self) -> String {
        let Some(file) = &self.file else { return "the API".to_owned() };
        let edited = if self.edited { ", changed over the API since" } else { "" };
        let problem = self.problem.as_ref().map(|problem| format!("; what it says now is out of force: {problem}"));
        format!("{file}{edited}{}", problem.unwrap_or_default())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum AdminState {
    Ready,
    /// No new connections; existing ones are untouched.
    Zero,
    /// Zeroed, and being emptied.
    Draining,
    /// Zeroed and empty.
    Drained,
    /// Not ready, or ejected.
    Unhealthy,
    /// It has a part of its weight: warming up, or on trial after an ejection.
    Warming,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    pub generation: u64,
    pub state: AdminState,
    /// Whether a document declares the node; otherwise it lives while a backend names it or a zero holds it.
    pub declared: bool,
    /// Number of services with a backend here.
    pub services: usize,
    /// Number of backends here.
    pub backends: usize,
    /// How many of them are not ready, or ejected.
    #[serde(default)]
    pub unhealthy: usize,
    pub connecting: u64,
    pub active_connections: u64,
    pub new_connections: u64,
    pub connect_failures: u64,
    pub last_new_connection_at: Option<Timestamp>,
    /// Only while zeroed.
    #[serde(flatten)]
    pub zero: Option<ZeroStatus>,
}

impl AdminState {
    pub fn of(zero: Option<&Zero>) -> Self {
        let Some(zero) = zero else { return Self::Ready };
        match &zero.drain {
            None => Self::Zero,
            Some(Drain { end: None, .. }) => Self::Draining,
            Some(Drain { end: Some(DrainEnd::Drained), .. }) => Self::Drained,
            // It is zeroed still, and some of its connections have stayed.
            Some(Drain { end: Some(DrainEnd::DeadlineReached), .. }) => Self::Zero,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Zero => "zero",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Unhealthy => "unhealthy",
            Self::Warming => "warming",
        }
    }
}
