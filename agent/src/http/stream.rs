//! Long answers, made piece by piece on a thread of their own: a listing of 100,000 backends takes as much memory as
//! one piece.

use std::io::{self, Write};

use anyhow::Result;
use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, once, wrappers::ReceiverStream};

use super::problem::Problem;

/// Bytes of a piece.
const PIECE: usize = 64 << 10;
/// Pieces that wait to be sent.
const AHEAD: usize = 4;

/// Answers with what `produce` writes, which runs as fast as the caller reads and ends when the caller goes away.
///
/// # Errors
/// When it fails before the first piece. Later the answer breaks off, which the caller can tell from an end.
pub async fn respond(
    media_type: &'static str,
    produce: impl FnOnce(&mut Pieces) -> Result<()> + Send + 'static,
) -> Result<Response, Problem> {
    let (sender, mut receiver) = mpsc::channel(AHEAD);
    tokio::task::spawn_blocking(move || {
        let mut pieces = Pieces { buffer: Vec::with_capacity(PIECE + 1024), sender };
        if let Err(error) = produce(&mut pieces).and_then(|()| Ok(pieces.flush()?)) {
            // Nobody hears it when the caller has gone.
            let _ = pieces.sender.blocking_send(Err(error));
        }
    });
    let first = receiver.recv().await.transpose()?.unwrap_or_default();
    let rest = ReceiverStream::new(receiver).map(|piece| piece.map_err(io::Error::other));
    let mut response = Response::new(Body::from_stream(once(Ok(first)).chain(rest)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    Ok(response)
}

/// Collects what is written into pieces.
pub struct Pieces {
    buffer: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes>>,
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
        self.sender.blocking_send(Ok(piece.into())).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Answers `{"items": [...]}` with one item after the other.
///
/// # Errors
/// As [`respond`].
pub async fn list(produce: impl FnOnce(&mut Items<'_>) -> Result<()> + Send + 'static) -> Result<Response, Problem> {
    respond("application/json", move |out| {
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
