//! What a test and its client process say to each other: one JSON line each way.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::load::{Load, Report};

/// How a socket is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Options {
    pub(crate) from: Option<SocketAddr>,
    pub(crate) mark: Option<u32>,
    pub(crate) millis: u64,
    pub(crate) transport: Transport,
    pub(crate) reset: bool,
    pub(crate) keepalive: Option<u64>,
}

/// The protocol of a stream socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// Multipath TCP.
    Mptcp,
    /// TCP with the first bytes in the SYN (Fast Open): the connection is made by the first send.
    FastOpen,
}

impl Default for Options {
    fn default() -> Self {
        Self { from: None, mark: None, millis: 10_000, transport: Transport::Tcp, reset: false, keepalive: None }
    }
}

impl Options {
    /// Binds the socket before it connects.
    pub fn from(mut self, address: &str) -> Self {
        self.from = Some(super::address(address));
        self
    }

    /// Sets SO_MARK.
    pub fn mark(mut self, mark: u32) -> Self {
        self.mark = Some(mark);
        self
    }

    /// How long connect and receive may take; after that the errno is ETIMEDOUT (connect) or EAGAIN (receive).
    pub fn timeout_millis(mut self, millis: u64) -> Self {
        self.millis = millis;
        self
    }

    /// Something else than plain TCP.
    pub fn transport(mut self, transport: Transport) -> Self {
        self.transport = transport;
        self
    }

    /// Closes with a reset, which leaves no port in TIME_WAIT.
    pub fn reset_on_close(mut self) -> Self {
        self.reset = true;
        self
    }

    /// Sends keep-alive probes after so many seconds of quiet.
    pub fn keepalive_seconds(mut self, seconds: u64) -> Self {
        self.keepalive = Some(seconds);
        self
    }
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Hello,
    Place,
    Connect {
        to: SocketAddr,
        options: Options,
    },
    Datagrams {
        to: Option<SocketAddr>,
        options: Options,
    },
    /// connect() on an existing socket; to nowhere (AF_UNSPEC) without an address.
    Reconnect {
        handle: u64,
        to: Option<SocketAddr>,
    },
    Send {
        handle: u64,
        data: String,
        to: Option<SocketAddr>,
    },
    Receive {
        handle: u64,
    },
    ReadLine {
        handle: u64,
    },
    PeerAddress {
        handle: u64,
    },
    LocalAddress {
        handle: u64,
    },
    SetMark {
        handle: u64,
        mark: u32,
    },
    /// SO_ERROR, which reading clears.
    TakeError {
        handle: u64,
    },
    Shutdown {
        handle: u64,
    },
    Close {
        handle: u64,
    },
    Run {
        load: Load,
    },
    Begin {
        load: Load,
    },
    Progress {
        handle: u64,
    },
    End {
        handle: u64,
    },
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Done,
    Handle { handle: u64 },
    Address { address: SocketAddr },
    Data { data: String, from: Option<SocketAddr> },
    Count { count: u64 },
    Errno { errno: Option<i32> },
    Report { report: Report },
    Place { place: BTreeMap<String, String> },
}
