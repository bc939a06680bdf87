//! The engine: the one thread that owns the desired state, the tables and the store. Requests and timers go in; table
//! writes, saved state and what is published come out. Nothing on the path of a packet ever waits for it.
//!
//! `event_loop` takes commands from the channel of `client`, one at a time. `requests`, `documents`, `health_updates` and
//! `drains` turn them into proposals; `guards` refuse what must be insisted on, and `brake` holds documents that remove too
//! much; `transaction` puts a proposal in force, or says why not (`undone`: what becomes of it then); `proofs` and `warmups`
//! add what is kept with it, `attachment` follows what is attached, `narrate` tells, and `audit` keeps who asked for
//! what, which `history` takes back. `recovery`
//! tries again what failed, `reuse` gives ids out again. What takes time is done by `workers`.

mod adopt;
mod attachment;
mod audit;
mod brake;
pub mod client;
mod documents;
mod drains;
mod event_loop;
pub mod guards;
mod health_updates;
mod history;
mod looks;
mod narrate;
mod proofs;
mod recovery;
mod requests;
mod retry;
mod reuse;
mod start;
#[cfg(test)]
mod tests;
mod transaction;
mod undone;
mod warmups;
mod workers;

pub use client::Handle;
pub use start::{RunningEngine, start};
