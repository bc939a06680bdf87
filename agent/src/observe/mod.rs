//! What really happens: counters, connections and events, read from the kernel and told to whoever asks.

pub mod batches;
pub mod caller;
pub mod census;
pub mod cgroups;
pub mod clock;
pub mod connections;
pub mod events;
pub mod explain;
pub mod fitness;
pub mod gauges;
pub mod operations;
pub mod proof;
pub mod readings;
pub mod report;
pub mod share;
pub mod status;
pub mod writes;
