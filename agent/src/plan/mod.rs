//! From weights to slot tables. Everything here is a pure function.

pub mod table;
pub mod weights;
