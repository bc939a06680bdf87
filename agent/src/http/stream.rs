//! Long answers, made piece by piece on a thread of their own: a listing of 100,000 backends takes as much memory as
//! one piece.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use serde::Serialize;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{Instant, timeout_at},
};
use tokio_stream::{StreamExt, once, wrappers::ReceiverStream};

use super::{App, problem::Problem};

const JSON: &str = "application/json";
/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// Pieces that wait to be sent.
const AHEAD: usize = 4;

/// How long an answer may take in all: it holds a thread.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers with what `produce` writes, which runs as fast as the caller reads and ends when the caller goes away. So many
/// of a listener are made at a time; others wait.
///
/// # Errors
/// When it fails before the first piece. Later the answer breaks off, which the caller can tell from an end.
pub async fn respond(
    app: &App,
    media_type: &'static str,
    produce: impl FnOnce(&mut Pieces) -> Result<()> + Send + 'static,
) -> Result<Response, Problem> {
    let turn = app.allowance.listings.clone().acquire_owned().await.map_err(anyhow::Error::new)?;
    let (sender, mut receiver) = mpsc::channel(AHEAD);
    let (runtime, until) = (Handle::current(), Instant::now() + PATIENCE);
    let workers = app.allowance.workers.clone();
    tokio::task::spawn_blocking(move || {
        let buffer = Vec::with_capacity(PIECE + 1024);
        let mut pieces = Pieces { buffer, sender, runtime, until, workers, work: None };
        pieces.begin_work();
        let produced = produce(&mut pieces).and_then(|()| Ok(pieces.flush()?));
        // Nobody hears it when the caller has gone.
        let _ = pieces.send(produced.map(|()| END));
        drop(turn);
    });
    let first = receiver.recv().await.transpose()?.unwrap_or_default();
    let pieces = once(Ok(first)).chain(ReceiverStream::new(receiver).map(|piece| piece.map_err(io::Error::other)));
    // What ends without its last piece has broken off.
    let pieces = pieces.chain(once(Err(io::ErrorKind::TimedOut.into())));
    let whole = pieces.take_while(|piece| !piece.as_ref().is_ok_and(Bytes::is_empty));
    let mut response = Response::new(Body::from_stream(whole));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// The last piece. No other is empty.
const END: Bytes = Bytes::new();

/// Collects what is written into pieces.
pub struct Pieces {
    buffer: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes>>,
    runtime: Handle,
    until: Instant,
    workers: Arc<Semaphore>,
    /// Given up while a piece waits to be read.
    work: Option<OwnedSemaphorePermit>,
}

impl Pieces {
    fn begin_work(&mut self) {
        // It is never closed.
        self.work = self.runtime.block_on(self.workers.clone().acquire_owned()).ok();
    }

    fn send(&mut self, piece: Result<Bytes>) -> io::Result<()> {
        self.work = None;
        match self.runtime.block_on(timeout_at(self.until, self.sender.send(piece))) {
            Ok(sent) => sent.map_err(|_| io::ErrorKind::BrokenPipe.into()),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE + 1024));
        self.send(Ok(piece.into()))?;
        self.begin_work();
        Ok(())
    }
}

/// Answers with one value, which may be as long as a listing: a service has 10,000 backends.
///
/// # Errors
/// As [`respond`].
pub async fn one<T: Serialize>(
    app: &App,
    make: impl FnOnce(&App) -> Result<T> + Send + 'static,
) -> Result<Response, Problem> {
    let asked = app.clone();
    respond(app, JSON, move |out| Ok(serde_json::to_writer(out, &make(&asked)?)?)).await
}

/// Answers `{"items": [...]}` with one item after the other.
///
/// # Errors
/// As [`respond`].
pub async fn list(
    app: &App,
    produce: impl FnOnce(&mut Items<'_>) -> Result<()> + Send + 'static,
) -> Result<Response, Problem> {
    respond(app, JSON, move |out| {
        out.write_all(b"{\"items\":[")?;
        produce(&mut Items { out, separator: b"" })?;
        Ok(out.write_all(b"]}")?)
    })
    .await
}

/// The items of a listing.
pub struct Items<'a> {
    out: &'a mut Pieces,
    separator: &'static [u8],
}

impl Items<'_> {
    /// # Errors
    /// When nobody reads any more.
    pub fn push(&mut self, item: &impl Serialize) -> Result<()> {
        self.out.write_all(std::mem::replace(&mut self.separator, b","))?;
        Ok(serde_json::to_writer(&mut *self.out, item)?)
    }
}
