//! From what is desired and what the kernel holds to an ordered list of table writes. Pure: no I/O, no clock.
//!
//! Weights become shares (`weights`), shares become a table that is stepped through (`spread`, laid out by `order`) or
//! indexed by a client's hash (`affinity`), tables become writes (`transition`). What the kernel has acknowledged is
//! `programmed`, and it changes by acknowledged writes alone.
#![deny(clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

pub mod affinity;
pub mod draining;
pub mod entry;
#[cfg(test)]
pub mod fake;
pub mod op;
mod order;
pub mod programmed;
pub mod regions;
pub mod service;
pub mod spread;
pub mod table;
pub mod transition;
#[cfg(test)]
mod turns;
pub mod weights;

pub use op::{DataPlane, Entries, MapOp, Names};
pub use programmed::{Programmed, Retired};
pub use transition::{Goal, NoRoom, Scope, Step, Transition, transition};
