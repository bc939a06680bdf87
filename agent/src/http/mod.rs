//! The HTTP API: what people and programs ask of the agent. One route table ([`router`]) is also the OpenAPI document.
//! A handler turns a request into a change or a question, and the answer into JSON; it decides nothing.
//! Every error is a [`problem::Problem`].
// A refusal is an answer of its own, made once for a request that goes no further: its size does not matter.
#![allow(clippy::result_large_err)]

mod access;
mod apply;
mod backends;
mod body;
mod conditions;
pub mod connections;
mod drain;
mod events;
mod explain;
pub mod listen;
mod meta;
mod monitor;
mod nodes;
mod openapi;
mod operations;
mod parameters;
pub mod problem;
mod ready;
mod router;
mod services;
mod stream;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod times;
pub mod views;
mod write;
mod zero;

use tokio::sync::watch;

use crate::{engine::Handle, view::report::Reporter};

pub use access::{Access, Token};
pub use listen::{Bound, serve};
pub use openapi::document;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    pub handle: Handle,
    /// Turns true when the agent stops: endless answers end then.
    stopping: watch::Receiver<bool>,
    /// Most bytes of a body of /v1/apply.
    bulk_limit: usize,
}

impl App {
    pub fn new(handle: Handle, stopping: watch::Receiver<bool>) -> Self {
        Self { handle, stopping, bulk_limit: body::LIMIT }
    }

    /// The same, for callers on this host that may send many documents at once.
    fn with_bulk(self) -> Self {
        Self { bulk_limit: body::BULK_LIMIT, ..self }
    }

    fn reporter<'a>(&'a self, published: &'a crate::view::published::Published) -> Reporter<'a> {
        Reporter { published, readings: &**self.handle.readings() }
    }
}
