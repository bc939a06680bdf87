//! Looking at one socket, and closing it where the kernel has no `bpf_sock_destroy`, by netlink.
//!
//! Closing is two steps: between the look and the close a request can go out. The close asks for the socket by its cookie, so
//! that it never hits another one.

use std::{
    io::{Error, ErrorKind},
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::{
    SOCK_DESTROY, SockDiagMessage,
    constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP},
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt::ReceiveTimeout,
};
use sluice_common::{
    records::CensusRow,
    tables::{TCP, socket_addr},
};

use crate::host::namespaces::is_local;

/// A netlink socket of the namespace in which it was opened.
pub struct Diagnosis {
    socket: OwnedFd,
}

/// What the kernel tells of an established TCP socket, or one that was. The numbers of bytes and the window are those of one
/// instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpNumbers {
    /// TCP state as in `include/net/tcp_states.h`.
    pub state: u8,
    /// A FIN that was received counts as a byte.
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Written and not acknowledged, or received and not read, in bytes.
    pub waiting: u32,
    /// What the peer allows to be sent, in bytes.
    pub window: u32,
    /// By how many bits the peer shifts the windows that it announces.
    pub window_shift: u8,
    pub timestamps: Timestamps,
    /// Index of the interface that the socket is bound to; 0: none.
    pub interface: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timestamps {
    None,
    Milliseconds,
    /// Where a route says so (Linux 6.7 and later).
    Microseconds,
}

/// `INET_DIAG_NOCOOKIE`.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// # Errors
/// When this kernel cannot diagnose sockets.
pub fn probe() -> Result<()> {
    let question = InetRequest {
        family: AF_INET,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId { cookie: ANY_COOKIE, ..SocketId::new_v4() },
    };
    match Diagnosis::open()?.ask(question, None) {
        // Nobody has these ends; somebody was there to look.
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
            Err(error).context("asking for a socket by netlink (CONFIG_INET_DIAG, module tcp_diag)")
        }
        _ => Ok(()),
    }
}

/// Whether a TCP socket of the namespace that this thread is in listens there. False where that cannot be told.
pub fn is_listened_to(address: SocketAddr) -> bool {
    let (unspecified, family) = match address {
        SocketAddr::V4(_) => (SocketId::new_v4(), AF_INET),
        SocketAddr::V6(_) => (SocketId::new_v6(), AF_INET6),
    };
    let (source_address, source_port) = (address.ip(), address.port());
    let question = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId { source_address, source_port, cookie: ANY_COOKIE, ..unspecified },
    };
    let ask = || Diagnosis::open()?.ask(question, None).context("asking for a listener by netlink");
    is_local(&address.ip()) && ask().is_ok_and(|found| found.is_some())
}

impl Diagnosis {
    /// In the namespace that this thread is in.
    ///
    /// # Errors
    /// When netlink is not to be had.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkSockDiag);
        let socket = opened.context("opening a netlink socket")?;
        setsockopt(&socket, ReceiveTimeout, &nix::sys::time::TimeVal::new(1, 0)).context("setting a time limit")?;
        Ok(Self { socket })
    }

    /// Closes the socket of `row`; false when it was left alone or is gone. `quiet`: only if nothing went over it since.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn close(&self, row: &CensusRow, quiet: bool) -> Result<bool> {
        let close = || {
            let Some(found) = self.ask(look_at(row), None)? else { return Ok(false) };
            let SocketId { source_port, destination_port, .. } = found.header.socket_id;
            let same = (source_port, destination_port) == (u16::from_be(row.local_port), u16::from_be(row.remote_port));
            if !same || (quiet && row.connection.protocol == TCP && !is_quiet_since(row, &found)) {
                return Ok(false);
            }
            let id = SocketId { cookie: found.header.socket_id.cookie, ..identity(row) };
            self.ask(request(row.connection.protocol, id), Some(SOCK_DESTROY)).map(|_| true)
        };
        match close() {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            result => result.context("closing a socket by netlink (CONFIG_INET_DIAG_DESTROY)"),
        }
    }

    /// How the TCP socket with these ends and this cookie fares; `None` when it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn standing(&self, local: SocketAddr, remote: SocketAddr, cookie: u64) -> Result<Option<TcpNumbers>> {
        let id = socket_id(local, remote, cookie.to_ne_bytes());
        match self.ask(request(TCP, id), None) {
            Ok(found) => Ok(found.as_ref().and_then(TcpNumbers::of)),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(None),
            Err(error) => Err(error).context("asking for a socket by netlink (CONFIG_INET_DIAG, module tcp_diag)"),
        }
    }

    fn ask(&self, request: InetRequest, kind: Option<u16>) -> std::io::Result<Option<InetResponse>> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | if kind.is_some() { NLM_F_ACK } else { 0 };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        if let Some(kind) = kind {
            message.header.message_type = kind;
        }
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        let mut answer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        read_answer(answer.get(..length).unwrap_or_default())
    }
}

/// The socket that an answer describes; none where it only says that it was done.
///
/// # Errors
/// When the kernel refused, or it is no answer.
pub fn read_answer(bytes: &[u8]) -> std::io::Result<Option<InetResponse>> {
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(bytes);
    match answer.map_err(|error| Error::new(ErrorKind::InvalidData, error.to_string()))?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => {
            // The crate's own translation overflows for the least number.
            Err(Error::from_raw_os_error(error.raw_code().saturating_neg()))
        }
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => Ok(Some(*found)),
        _ => Ok(None),
    }
}

/// Whether a TCP socket has sent and received what it had when `row` was read, and nothing waits.
fn is_quiet_since(row: &CensusRow, found: &InetResponse) -> bool {
    let info = found.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None });
    info.is_some_and(|info| (info.bytes_sent, info.bytes_received) == (row.bytes_sent, row.bytes_received))
        && (found.header.send_queue, found.header.recv_queue) == (row.unacknowledged, row.unread)
}

impl TcpNumbers {
    fn of(found: &InetResponse) -> Option<Self> {
        /// `TCPI_OPT_TIMESTAMPS` and `TCPI_OPT_USEC_TS` of linux/tcp.h.
        const TIMESTAMPS: u8 = 1;
        const MICROSECONDS: u8 = 64;
        let info = found.nlas.iter().find_map(|nla| if let Nla::TcpInfo(info) = nla { Some(info) } else { None })?;
        let waiting = [found.header.recv_queue, found.header.send_queue, info.notsent_bytes, info.unacked];
        Some(Self {
            state: found.header.state,
            bytes_received: info.bytes_received,
            bytes_sent: info.bytes_sent,
            waiting: waiting.into_iter().fold(0, u32::saturating_add),
            window: info.snd_wnd,
            window_shift: info.wscale & 0xf,
            timestamps: match (info.options & TIMESTAMPS, info.options & MICROSECONDS) {
                (0, _) => Timestamps::None,
                (_, 0) => Timestamps::Milliseconds,
                (_, _) => Timestamps::Microseconds,
            },
            interface: found.header.socket_id.interface_id,
        })
    }
}

/// The question for the socket of `row`. For datagram sockets the kernel takes the ends the other way round.
fn look_at(row: &CensusRow) -> InetRequest {
    let id = identity(row);
    if row.connection.protocol == TCP {
        return request(TCP, id);
    }
    let swapped = SocketId {
        source_address: id.destination_address,
        source_port: id.destination_port,
        destination_address: id.source_address,
        destination_port: id.source_port,
        ..id
    };
    request(row.connection.protocol, swapped)
}

fn request(protocol: u16, socket_id: SocketId) -> InetRequest {
    InetRequest {
        family: if socket_id.source_address.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: if protocol == TCP { IPPROTO_TCP } else { IPPROTO_UDP },
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id,
    }
}

fn identity(row: &CensusRow) -> SocketId {
    // Made when somebody asks for it first; until then any will do.
    let cookie = if row.cookie == 0 { ANY_COOKIE } else { row.cookie.to_ne_bytes() };
    socket_id(socket_addr(&row.local, row.local_port), socket_addr(&row.remote, row.remote_port), cookie)
}

fn socket_id(local: SocketAddr, remote: SocketAddr, cookie: [u8; 8]) -> SocketId {
    SocketId {
        source_address: local.ip(),
        source_port: local.port(),
        destination_address: remote.ip(),
        destination_port: remote.port(),
        interface_id: 0,
        cookie,
    }
}
