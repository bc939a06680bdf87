//! Threads that work beside the engine: each follows the published state, does what takes time, and sends the engine
//! commands. None of them writes a table that steers: the outlier worker writes limits into STREAKS, the drain worker the
//! tables of its passes, the monitor its filter. Flows that lead to removed backends are removed.

pub mod attachment;
mod changes;
pub mod drain;
pub mod health;
pub mod monitor;
pub mod outlier;
pub mod reclaim;
pub mod removed;
