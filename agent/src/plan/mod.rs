//! From weights to slot tables. Everything here is a pure function: weights become shares (`weights`), shares
//! become a table that is stepped through (`spread`, laid out by `order`) or indexed by a client's hash (`affinity`).
//! Tables hold indices into the list of candidates that they were built from; the caller maps them to backend ids.

pub mod affinity;
mod order;
pub mod spread;
pub mod table;
pub mod weights;
