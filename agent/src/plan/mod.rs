//! From what is desired and what the kernel holds to an ordered list of table writes. Pure: no I/O, no clock.
//!
//! The order of every list makes each prefix of it a valid state: what is referenced comes first, then the flip, then
//! the removal of what nothing references any more.

pub mod op;
pub mod programmed;
pub mod regions;
pub mod service;

pub use op::{Entries, Machine, MapOp};
pub use programmed::{Programmed, Retired};
