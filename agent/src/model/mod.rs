//! Desired state: what operators and pipelines asked for, checked and given dense ids.
//! Parsing is validation: a [`State`] that exists is valid. Names stop here; everything below works with ids.
//! A change is a pure function from one state to the next; to refuse it is to drop the next one.

pub mod address;
mod apply;
pub mod change;
mod check;
pub mod document;
mod drain;
mod ids;
mod install;
mod merge;
pub mod name;
mod parallel;
pub mod parse;
pub mod quiet;
mod resolve;
pub mod saved;
pub mod service;
pub mod state;
mod targets;
mod yaml;
mod zero;

#[cfg(test)]
pub(crate) mod tests;

pub use change::{Applied, Change, Ending, Outcome, Refusal, RefusalKind, Target, Touched};
pub use drain::{CloseInbound, Drain, DrainEnd, DrainRequest, IdleClose, OnDeadline};
pub use name::Name;
pub use service::{
    Backend, BackendId, Balance, Frontend, Group, Node, NodeId, OnNoBackend, Origin, Protocol, Service, ServiceId,
    ServiceProtocol, Zero,
};
pub use state::{Limits, State};
