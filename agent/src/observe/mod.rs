//! What really happens: counters, connections and events, read from the kernel and told to whoever asks.

pub mod census;
pub mod events;
pub mod gauges;
pub mod share;
