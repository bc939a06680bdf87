//! Sockets that a client holds open for a test.

use std::net::SocketAddr;

use nix::errno::Errno;

use super::{
    Client, address,
    protocol::{Reply, Request},
    unexpected,
};

/// A TCP connection of a [`Client`]. Dropping it closes it.
#[derive(Debug)]
pub struct Connection<'a> {
    socket: Socket<'a>,
}

/// A UDP socket of a [`Client`]. Dropping it closes it.
#[derive(Debug)]
pub struct Datagrams<'a> {
    socket: Socket<'a>,
}

#[derive(Debug)]
struct Socket<'a> {
    client: &'a Client,
    handle: u64,
}

impl<'a> Connection<'a> {
    pub(super) fn new(client: &'a Client, handle: u64) -> Self {
        Self { socket: Socket { client, handle } }
    }

    /// Reads one line without its end. A [`crate::Server`] greets with its name. ENODATA: the peer has closed.
    pub fn line(&self) -> Result<String, Errno> {
        let answer = self.socket.ask(&Request::ReadLine { handle: self.socket.handle })?;
        Ok(data(answer).0)
    }

    /// Sends a line and reads one: the answer of a [`crate::Server`] is "name: line".
    pub fn exchange(&self, line: &str) -> Result<String, Errno> {
        self.send(&format!("{line}\n"))?;
        self.line()
    }

    /// Sends text as it is.
    pub fn send(&self, text: &str) -> Result<(), Errno> {
        self.socket.send(text, None)
    }

    /// getpeername().
    pub fn peer(&self) -> Result<SocketAddr, Errno> {
        self.socket.peer()
    }

    /// getsockname().
    pub fn local(&self) -> Result<SocketAddr, Errno> {
        self.socket.local()
    }

    /// Says that nothing more will be sent.
    pub fn shutdown(&self) -> Result<(), Errno> {
        self.socket.client.done(&Request::Shutdown { handle: self.socket.handle })
    }

    /// connect() with AF_UNSPEC: the socket has no peer afterwards and can be connected again.
    pub fn disconnect(&self) -> Result<(), Errno> {
        self.socket.reconnect(None)
    }

    /// connect() once more.
    pub fn reconnect(&self, to: &str) -> Result<(), Errno> {
        self.socket.reconnect(Some(to))
    }

    /// The error that waits on the socket (SO_ERROR); asking clears it.
    pub fn error(&self) -> Option<Errno> {
        self.socket.error()
    }
}

impl<'a> Datagrams<'a> {
    pub(super) fn new(client: &'a Client, handle: u64) -> Self {
        Self { socket: Socket { client, handle } }
    }

    /// send() to the connected peer.
    pub fn send(&self, text: &str) -> Result<(), Errno> {
        self.socket.send(text, None)
    }

    /// sendto() with an address.
    pub fn send_to(&self, text: &str, to: &str) -> Result<(), Errno> {
        self.socket.send(text, Some(to))
    }

    /// recvfrom(): the datagram and where it seems to come from. EAGAIN when none came in time.
    pub fn receive(&self) -> Result<(String, SocketAddr), Errno> {
        let (text, from) = data(self.socket.ask(&Request::Receive { handle: self.socket.handle })?);
        match from {
            Some(from) => Ok((text, from)),
            None => panic!("the datagram {text:?} came without a source address"),
        }
    }

    /// send() and receive: the answer of a [`crate::Server`] is "name: text".
    pub fn exchange(&self, text: &str) -> Result<(String, SocketAddr), Errno> {
        self.send(text)?;
        self.receive()
    }

    /// sendto() and receive.
    pub fn exchange_with(&self, text: &str, to: &str) -> Result<(String, SocketAddr), Errno> {
        self.send_to(text, to)?;
        self.receive()
    }

    /// getpeername().
    pub fn peer(&self) -> Result<SocketAddr, Errno> {
        self.socket.peer()
    }

    /// getsockname().
    pub fn local(&self) -> Result<SocketAddr, Errno> {
        self.socket.local()
    }

    /// connect() to an address.
    pub fn connect(&self, to: &str) -> Result<(), Errno> {
        self.socket.reconnect(Some(to))
    }

    /// connect() with AF_UNSPEC.
    pub fn disconnect(&self) -> Result<(), Errno> {
        self.socket.reconnect(None)
    }

    /// Sets SO_MARK on the open socket.
    pub fn mark(&self, mark: u32) -> Result<(), Errno> {
        self.socket.client.done(&Request::SetMark { handle: self.socket.handle, mark })
    }

    /// The error that waits on the socket (SO_ERROR); asking clears it.
    pub fn error(&self) -> Option<Errno> {
        self.socket.error()
    }
}

impl Socket<'_> {
    fn ask(&self, request: &Request) -> Result<Reply, Errno> {
        self.client.ask(request)
    }

    fn send(&self, data: &str, to: Option<&str>) -> Result<(), Errno> {
        let request = Request::Send { handle: self.handle, data: data.to_owned(), to: to.map(address) };
        self.client.done(&request)
    }

    fn reconnect(&self, to: Option<&str>) -> Result<(), Errno> {
        self.client.done(&Request::Reconnect { handle: self.handle, to: to.map(address) })
    }

    fn peer(&self) -> Result<SocketAddr, Errno> {
        self.address(&Request::PeerAddress { handle: self.handle })
    }

    fn local(&self) -> Result<SocketAddr, Errno> {
        self.address(&Request::LocalAddress { handle: self.handle })
    }

    fn address(&self, request: &Request) -> Result<SocketAddr, Errno> {
        match self.ask(request)? {
            Reply::Address { address } => Ok(address),
            other => unexpected(&Ok(other)),
        }
    }

    fn error(&self) -> Option<Errno> {
        match self.ask(&Request::TakeError { handle: self.handle }) {
            Ok(Reply::Errno { errno }) => errno.map(Errno::from_raw),
            other => unexpected(&other),
        }
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // A client that is gone has closed everything; a panic here could be the second one.
        if !std::thread::panicking() {
            let _ = self.client.done(&Request::Close { handle: self.handle });
        }
    }
}

fn data(reply: Reply) -> (String, Option<SocketAddr>) {
    match reply {
        Reply::Data { data, from } => (data, from),
        other => unexpected(&Ok(other)),
    }
}
