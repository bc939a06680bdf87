//! Sluice steers new connections to weighted backends inside the Linux kernel. This library is the agent: the daemon of a
//! host and the command line that asks it.
//!
//! # The house, from the ground up
//!
//! Each layer imports only from those before it; a test keeps it so.
//!
//! | layer | what it is |
//! |---|---|
//! | [`model`] | what operators and pipelines asked for: documents, and the [`model::State`] that they make. Pure |
//! | [`host`] | the machine: clocks, cgroups, network namespaces, processes |
//! | [`settings`] | what the daemon was started with |
//! | [`control`] | state machines without I/O: warm-up, readiness, outliers, drains |
//! | [`source`] | where documents come from, and the store that keeps them |
//! | [`plan`] | from what the kernel holds to what is desired, as an ordered list of writes. Pure |
//! | [`kernel`] | programs, tables and counters: the only owner of what is in the kernel |
//! | [`view`] | what is shown: the published state, proofs, status, events |
//! | [`probe`] | looks at backends: TCP, HTTP, commands |
//! | [`telemetry`] | logs and metrics |
//! | [`engine`] | the one thread that changes anything, and its workers |
//! | [`http`], [`daemon`], [`cli`] | the API, the life of the process, and the verbs that ask |
//!
//! # A change, in one direction
//!
//! A source, a request or a worker sends a command to the [`engine`]. The [`model`] makes the next state or refuses, the
//! [`plan`] says which writes lead there in which order, the [`kernel`] acknowledges each, the [`source::store`] keeps the
//! state, [`view::published`] shows it, and whoever asked is answered.

pub mod allocator;
pub mod cli;
pub mod control;
pub mod daemon;
pub mod engine;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod host;
pub mod http;
pub mod kernel;
#[cfg(test)]
mod layers;
pub mod model;
pub mod plan;
pub mod probe;
pub mod settings;
pub mod source;
pub mod telemetry;
pub mod view;
