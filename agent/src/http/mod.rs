//! The HTTP API: what people and programs ask of the agent. One route table ([`router`]) is also the OpenAPI document.
//! A handler turns a request into a change or a question, and the answer into JSON; it decides nothing.
//! Every error is a [`problem::Problem`].
// A refusal is an answer of its own, made once for a request that goes no further: its size does not matter.
#![allow(clippy::result_large_err)]

mod accept;
mod access;
mod apply;
mod backends;
mod body;
pub mod brake;
mod conditions;
pub mod connections;
mod crowd;
mod drain;
mod events;
mod explain;
mod groups;
mod history;
mod host;
pub mod listen;
mod meta;
mod monitor;
mod nodes;
mod openapi;
mod operations;
mod parameters;
pub mod problem;
mod prompt;
mod ready;
mod requester;
mod router;
mod services;
mod stream;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod times;
pub mod tls;
mod tokens;
mod unread;
pub mod views;
mod write;
mod zero;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::{engine::Handle, view::report::Reporter};

pub use access::{Access, Gate};
pub use listen::{Bound, serve};
pub use openapi::document;

/// What handlers share.
#[derive(Clone)]
pub struct App {
    pub handle: Handle,
    /// Turns true when the agent stops: endless answers end then.
    stopping: watch::Receiver<bool>,
    allowance: Allowance,
    /// The TCP address while another program has it.
    awaited: Arc<Mutex<Option<SocketAddr>>>,
}

/// What the callers of one listener may take of the agent at a time. Those of the other have their own.
#[derive(Clone)]
struct Allowance {
    /// Most bytes of a body of /v1/apply.
    bulk_limit: usize,
    /// Large bodies.
    bodies: Arc<Semaphore>,
    bodies_at_once: u32,
    /// Long answers, each of which takes a thread; and those of them that are worked on, while others wait to be read.
    listings: Arc<Semaphore>,
    workers: Arc<Semaphore>,
    censuses: Arc<Semaphore>,
    /// Answers without an end.
    streams: Arc<Semaphore>,
}

impl Allowance {
    fn new(bulk_limit: usize, at_once: u32, listings: usize, streams: usize) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            bulk_limit,
            bodies: places(at_once as usize),
            bodies_at_once: at_once,
            listings: places(listings),
            workers: places(at_once as usize),
            censuses: places(1),
            streams: places(streams),
        }
    }
}

impl App {
    pub fn new(handle: Handle, stopping: watch::Receiver<bool>) -> Self {
        Self { handle, stopping, allowance: Allowance::new(body::LIMIT, 2, 16, 64), awaited: Arc::default() }
    }

    /// The same, for callers on this host that may send many documents at once.
    fn local(self) -> Self {
        Self { allowance: Allowance::new(body::BULK_LIMIT, 4, 32, 256), ..self }
    }

    fn awaited(&self) -> Option<SocketAddr> {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_awaited(&self, address: Option<SocketAddr>) {
        *self.awaited.lock().unwrap_or_else(PoisonError::into_inner) = address;
    }

    /// # Errors
    /// 503 when there are too many.
    fn stream_place(&self) -> Result<OwnedSemaphorePermit, problem::Problem> {
        let place = self.allowance.streams.clone().try_acquire_owned();
        place.map_err(|_| problem::Problem::busy("too many event streams are open on this listener: end some"))
    }

    fn reporter<'a>(&'a self, published: &'a crate::view::published::Published) -> Reporter<'a> {
        Reporter { published, readings: &**self.handle.readings() }
    }
}
