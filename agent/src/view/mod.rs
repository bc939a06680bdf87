//! What is shown: the published state, proofs, status, explanations, connections and events. Readers of the engine and of
//! the kernel's counters meet here; nothing here changes anything.

pub mod batches;
pub mod connections;
pub mod decisions;
pub mod events;
pub mod explain;
pub mod health;
pub mod history;
pub mod listeners;
pub mod operations;
pub mod proof;
pub mod published;
pub mod report;
pub mod share;
pub mod status;
pub mod writes;
