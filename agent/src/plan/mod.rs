//! From weights to slot tables. Everything here is a pure function.

mod order;
pub mod spread;
pub mod table;
pub mod weights;
