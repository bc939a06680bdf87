//! Desired state: what operators and pipelines asked for, checked and given dense ids.
//! Parsing is validation: a [`State`] that exists is valid. Names stop here; everything below works with ids.
//! A change is a pure function from one state to the next; to refuse it is to drop the next one.
#![deny(clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

pub mod address;
mod apply;
mod capacity;
pub mod change;
mod check;
mod differences;
pub mod document;
mod drain;
pub mod health;
mod health_updates;
mod ids;
mod install;
mod json;
mod merge;
pub mod name;
mod outlier;
mod parallel;
pub mod parse;
mod phase;
pub mod quiet;
mod readiness;
mod resolve;
pub mod saved;
mod secrets;
pub mod service;
mod sessions;
pub mod shrink;
pub mod span;
mod stamp;
pub mod state;
mod targets;
mod together;
pub mod undo;
mod warmup;
pub mod words;
mod yaml;
mod zero;

#[cfg(test)]
pub(crate) mod tests;

pub use capacity::shortages;
pub use change::{Applied, Change, Ending, Outcome, Refusal, RefusalKind, Target, Touched};
pub use drain::{CloseInbound, Drain, DrainEnd, DrainRequest, IdleClose, OnDeadline};
pub use health::{Ejection, Health, HealthReport, HealthUpdate, Report, Reported, Rule, Stage, Unready};
pub use name::Name;
pub use outlier::Outlier;
pub use phase::OperationPhase;
pub use readiness::{ProbeFrom, ProbeMethod, Readiness, ReadinessKind};
pub use service::{
    Backend, BackendId, Balance, CloseAs, Frontend, Group, HealthPolicy, Node, NodeId, OnNoBackend, Origin, Own,
    Protocol, Service, ServiceId, ServiceProtocol, Zero,
};
pub use sessions::UsualPort;
pub use span::Span;
pub use stamp::Stamp;
pub use state::{Limits, State};
pub use warmup::{Curve, Warmup, WarmupStart};
