//! The machine that the agent runs on: its clocks, cgroups, network namespaces, processes and users.
//! Only here does the agent ask what time it is.

pub mod caller;
pub mod cgroups;
pub mod clock;
pub mod namespaces;
pub mod ownership;
pub mod panics;
pub mod users;
pub mod wait;
