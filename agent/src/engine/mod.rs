//! The engine: the one thread that owns the desired state, the tables and the store. Requests and timers go in; table
//! writes, saved state and what is published come out. Nothing on the path of a packet ever waits for it.

pub mod client;
mod documents;
mod drains;
mod health_updates;
mod narrate;
mod proofs;
mod requests;
mod start;
mod steering;
#[cfg(test)]
mod tests;
mod transaction;
mod warmups;
mod workers;

pub use client::Handle;
pub use start::{Running, start};
