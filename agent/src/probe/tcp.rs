//! A connection that can be opened.

use std::{
    io::{Error, ErrorKind, Result},
    net::SocketAddr,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{io::Interest, time::timeout};

use super::{Begun, Found};
use crate::{
    control::readiness::{Cause, ProbeFailure},
    host::wait,
    model::Span,
};

/// A connect() that has begun.
pub enum Dial {
    Connected(Socket),
    /// Becomes writable when connect() is over.
    Waits(Socket),
}

/// Whether the ACK of the server's SYN-ACK goes out at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    Whole,
    /// The ACK waits for data, which never comes: the close resets the connection before the server's application sees
    /// it. (With TCP_QUICKACK off, `tcp_rcv_synsent_state_process` puts the ACK off for 40 ms or more.)
    Half,
}

pub fn begin(target: SocketAddr, limit: Span, mark: u32) -> Begun {
    match dial(target, mark, Handshake::Half) {
        Ok(Dial::Connected(_)) => Begun::Done(Ok(())),
        Ok(Dial::Waits(socket)) => Begun::Goes(Box::pin(async move { connect(socket, limit).await })),
        Err(error) => Begun::Done(Err(failure(&error))),
    }
}

/// Begins to connect. A reset ends the connection in any case: probes leave no TIME_WAIT behind.
///
/// # Errors
/// It was refused at once, or this host has no socket or no route.
pub fn dial(target: SocketAddr, mark: u32, handshake: Handshake) -> Result<Dial> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    if mark != 0 {
        socket.set_mark(mark)?;
    }
    socket.set_linger(Some(Duration::ZERO))?;
    if handshake == Handshake::Half {
        socket.set_tcp_quickack(false)?;
    }
    let target = target.into();
    match socket.connect(&target) {
        Ok(()) => return Ok(Dial::Connected(socket)),
        Err(error) if is_under_way(&error) => {}
        Err(error) => return Err(error),
    }
    // A server on this host has answered before the first call returned: a second call says so.
    match socket.connect(&target) {
        Ok(()) => Ok(Dial::Connected(socket)),
        Err(error) if is_under_way(&error) => Ok(Dial::Waits(socket)),
        Err(error) => Err(error),
    }
}

/// Waits for the end of a connect().
///
/// # Errors
/// The connection could not be made.
pub async fn connected(socket: Socket) -> Result<Socket> {
    let waiting = wait::register(socket.into(), Interest::WRITABLE)?;
    let _ = waiting.writable().await?;
    let socket = Socket::from(waiting.into_inner());
    match socket.take_error()? {
        None => Ok(socket),
        Some(error) => Err(error),
    }
}

/// What an error of a connection says of the backend.
pub fn failure(error: &Error) -> ProbeFailure {
    match error.kind() {
        ErrorKind::ConnectionRefused => ProbeFailure::new(Cause::Refused, "connection refused"),
        ErrorKind::TimedOut => ProbeFailure::new(Cause::NoAnswer, "connection timed out"),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
            ProbeFailure::new(Cause::Unreachable, "no route to the backend")
        }
        ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted
        | ErrorKind::UnexpectedEof => ProbeFailure::new(Cause::Broken, "connection reset"),
        _ => ProbeFailure::setup("cannot connect", error),
    }
}

async fn connect(socket: Socket, limit: Span) -> Found {
    match timeout(limit.duration(), connected(socket)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(failure(&error)),
        Err(_) => Err(ProbeFailure::new(Cause::NoAnswer, format!("no answer within {limit}"))),
    }
}

fn is_under_way(error: &Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}
