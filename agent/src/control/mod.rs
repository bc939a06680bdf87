//! What goes on by itself over time: state machines without I/O. What was seen and the time go in, what to do comes out;
//! tests move the time by hand.
#![deny(clippy::disallowed_methods, clippy::wildcard_enum_match_arm)]

pub mod drain;
pub mod outlier;
pub mod peers;
pub mod readiness;
pub mod warmup;
