//! The machine that the agent runs on: its clocks, cgroups, network namespaces and processes.
//! Only here does the agent ask what time it is.

pub mod caller;
pub mod cgroups;
pub mod clock;
pub mod namespaces;
pub mod ownership;
pub mod panics;
pub mod wait;
