//! The API as a caller sees it, with an agent that has no kernel. One file per subject.

mod bodies;
pub mod contract;
mod listeners;
mod services;
mod shares;
mod traffic;
mod zero;
