//! Sluice: steers connections to weighted backends inside the Linux kernel.

pub mod allocator;
pub mod cli;
pub mod control;
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
