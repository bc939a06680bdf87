//! The loop that ties the parts together: requests and timers go in, table writes and saved state come out.
//! One thread owns the desired state, the tables and the store; nothing on the path of a packet ever waits for it.

mod changes;
mod drainer;
mod drains;
mod findings;
mod keeper;
mod outliers;
mod prober;
mod proofs;
mod start;
mod steering;
#[cfg(test)]
mod tests;
mod warming;

pub use start::{Running, start};
