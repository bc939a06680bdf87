//! Threads that work beside the engine: each follows the published state, does what takes time, and sends the engine
//! commands. None of them writes a table.

mod changes;
pub mod drain;
pub mod health;
pub mod monitor;
pub mod outlier;
pub mod reclaim;
