//! From what is desired and what the kernel holds to an ordered list of table writes. Pure: no I/O, no clock.
//!
//! Weights become shares (`weights`), shares become a table that is stepped through (`spread`, laid out by `order`) or
//! indexed by a client's hash (`affinity`), tables become writes (`programmed`). The order of every list of writes
//! makes each prefix of it a valid state: what is referenced comes first, then the flip, then the removal of what
//! nothing references any more.

pub mod affinity;
pub mod draining;
#[cfg(test)]
pub mod fake;
pub mod op;
mod order;
pub mod programmed;
pub mod regions;
pub mod service;
pub mod spread;
pub mod table;
pub mod weights;

pub use op::{DataPlane, Entries, MapOp};
pub use programmed::{Programmed, Retired};
