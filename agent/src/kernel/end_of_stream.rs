//! Ends an idle connection as its own ends would: each gets a FIN with the numbers of the connection, and reads the end of
//! the stream.
//!
//! Nothing that was sent may be lost, whatever is sent while this goes on. On the caller's side:
//!
//! 1. The window of the caller is closed, by an acknowledgment that seems to be the server's. What the caller writes from
//!    here on waits in its socket. (If the agent ends now, the caller asks for the window after 200 ms, and the server opens
//!    it.)
//! 2. The kernel is asked whether the caller has sent or received anything since it was found idle. If so, the window is
//!    opened again, and the connection goes on. If its window was not closed, packets do not arrive: it is left alone, too.
//! 3. The caller gets its FIN. From here on all that it sends acknowledges that, so that the server, which has not sent it,
//!    drops it: nothing is executed any more.
//! 4. Once the kernel says that the caller has taken it, the server gets the other FIN.
//!
//! On the accepting side the FIN to the server comes first, and counts only if no request came before it. A request that
//! comes after it is answered by a reset, as after any server's close. Then the caller gets its own.
//!
//! In between, one thing can be lost: what the caller writes between steps 2 and 3, within some tens of microseconds, is not
//! executed, and its answer is the end of the stream.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sluice_common::{ending::EndingRow, tables::socket_addr};

use super::{
    segment::{Direction, Packet, RawSockets, Segment},
    sock_diag::{Diagnosis, TcpNumbers, Timestamps},
};

/// Raw sockets and diagnosis of one network namespace.
pub struct EndOfStream {
    sockets: RawSockets,
    diagnosis: Diagnosis,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Both ends were told.
    Both,
    /// Something went over it meanwhile, or it has ended by itself.
    Busy,
    /// It takes no packets from here, or none of this kind.
    Unreachable,
}

const ESTABLISHED: u8 = 1;
/// A packet over the loopback arrives before send() returns, unless other processors or threads handle packets
/// (`rps_cpus`, threaded NAPI), or more is to be done than processors can do (`ksoftirqd`).
const TRIES: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_micros(100),
    Duration::from_micros(400),
    Duration::from_millis(2),
    Duration::from_millis(8),
];
/// Window of a FIN to the peer: whatever it has still to say finds room.
const ROOM: u16 = 0x7fff;

/// A connection with what its segments need.
struct EndingConnection<'a> {
    row: &'a EndingRow,
    local: SocketAddr,
    remote: SocketAddr,
    before: TcpNumbers,
    since: Instant,
}

impl EndOfStream {
    /// In the namespace that this thread is in.
    ///
    /// # Errors
    /// When netlink is not to be had.
    pub fn open() -> Result<Self> {
        Ok(Self { sockets: RawSockets::default(), diagnosis: Diagnosis::open()? })
    }

    /// Ends a connection that was idle when `row` was written. `may_end` is asked last.
    ///
    /// # Errors
    /// When this process may not do it.
    pub fn end(&mut self, row: &EndingRow, may_end: impl FnOnce() -> bool) -> Result<Ended> {
        let since = Instant::now();
        let (local, remote) = (socket_addr(&row.local, row.local_port), socket_addr(&row.remote, row.remote_port));
        let Some(before) = self.diagnosis.standing(local, remote, row.cookie)? else { return Ok(Ended::Busy) };
        let connection = EndingConnection { row, local, remote, before, since };
        if !connection.is_as_it_was(&before) {
            return Ok(Ended::Busy);
        }
        if !connection.is_reachable() {
            return Ok(Ended::Unreachable);
        }
        match self.sockets.prepare(local, remote) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(error).context("opening a raw socket (CAP_NET_RAW)");
            }
            // Somebody else's address.
            Err(_) => return Ok(Ended::Unreachable),
            Ok(()) => {}
        }
        if !may_end() {
            return Ok(Ended::Busy);
        }
        if row.accepted == 0 { self.end_of_caller(&connection) } else { self.end_of_server(&connection) }
    }

    fn end_of_caller(&mut self, connection: &EndingConnection) -> Result<Ended> {
        let window = connection.window();
        let [close, open] = [0, window].map(|window| connection.to_socket(false, window));
        // Made before the question, so that no time goes by between that and the FIN.
        let fin = connection.to_socket(true, window);
        if self.sockets.send(&close).is_err() {
            return Ok(Ended::Unreachable);
        }
        let closed = self.becomes(connection, |now| now.window == 0 || !connection.is_as_it_was(now))?;
        match closed {
            None => return Ok(Ended::Busy),
            Some(now) if connection.is_as_it_was(&now) && now.window == 0 => {}
            Some(now) => {
                // It may have arrived late.
                let _ = self.sockets.send(&open);
                let is_busy = !connection.is_as_it_was(&now);
                return Ok(if is_busy { Ended::Busy } else { Ended::Unreachable });
            }
        }
        let sent = self.sockets.send(&fin);
        match self.becomes(connection, |now| connection.has_heard(now))? {
            Some(now) if sent.is_err() || !connection.has_heard(&now) => {
                let _ = self.sockets.send(&open);
                Ok(Ended::Unreachable)
            }
            // Gone: its owner has closed it with a reset.
            Some(_) | None => self.outward(connection),
        }
    }

    fn end_of_server(&mut self, connection: &EndingConnection) -> Result<Ended> {
        if self.sockets.send(&connection.to_socket(true, connection.window())).is_err() {
            return Ok(Ended::Unreachable);
        }
        let received = connection.before.bytes_received;
        match self.becomes(connection, |now| now.bytes_received != received)? {
            Some(now) if now.bytes_received == received => Ok(Ended::Unreachable),
            // A request came first.
            Some(now) if !connection.has_heard(&now) => Ok(Ended::Busy),
            Some(_) | None => self.outward(connection),
        }
    }

    fn outward(&mut self, connection: &EndingConnection) -> Result<Ended> {
        let sent = self.sockets.send(&connection.to_peer());
        Ok(if sent.is_ok() { Ended::Both } else { Ended::Unreachable })
    }

    /// The socket once it is as `wanted` says, or as it is after a while; `None` when it is gone.
    fn becomes(
        &self,
        connection: &EndingConnection,
        wanted: impl Fn(&TcpNumbers) -> bool,
    ) -> Result<Option<TcpNumbers>> {
        let mut last = None;
        for pause in TRIES {
            if !pause.is_zero() {
                thread::sleep(pause);
            }
            last = self.diagnosis.standing(connection.local, connection.remote, connection.row.cookie)?;
            if last.as_ref().is_none_or(&wanted) {
                break;
            }
        }
        Ok(last)
    }
}

impl EndingConnection<'_> {
    /// Whether nothing went over it since it was found idle.
    fn is_as_it_was(&self, now: &TcpNumbers) -> bool {
        now.state == ESTABLISHED
            && now.waiting == 0
            && (now.bytes_sent, now.bytes_received) == (self.row.bytes_sent, self.row.bytes_received)
    }

    /// Whether the FIN was the next that it received.
    fn has_heard(&self, now: &TcpNumbers) -> bool {
        now.state != ESTABLISHED && now.bytes_received == self.before.bytes_received + 1
    }

    /// Sockets that take packets from one interface only get none over the loopback; link-local addresses mean nothing
    /// without an interface. A window that is closed already cannot tell whether packets arrive.
    fn is_reachable(&self) -> bool {
        let has_scope = |address: SocketAddr| match address {
            SocketAddr::V4(_) => false,
            SocketAddr::V6(address) => address.ip().is_unicast_link_local(),
        };
        self.before.interface == 0 && !has_scope(self.local) && !has_scope(self.remote) && self.window() > 0
    }

    /// The window that the peer has announced last, as it announces it.
    fn window(&self) -> u16 {
        u16::try_from(self.before.window >> self.before.window_shift).unwrap_or(u16::MAX)
    }

    /// What the peer would send now.
    fn to_socket(&self, fin: bool, window: u16) -> Packet {
        let segment = Segment {
            from: self.remote,
            to: self.local,
            sequence: self.row.next_received,
            acknowledgment: self.row.next_sent,
            fin,
            window,
            timestamps: self.clock().map(|clock| (self.row.timestamp, clock)),
        };
        segment.packet(Direction::Inward)
    }

    /// The FIN that this socket would send when it was found idle.
    fn to_peer(&self) -> Packet {
        let segment = Segment {
            from: self.local,
            to: self.remote,
            sequence: self.row.next_sent,
            acknowledgment: self.row.next_received,
            fin: true,
            window: ROOM,
            timestamps: self.clock().map(|clock| (clock, self.row.timestamp)),
        };
        segment.packet(Direction::Outward)
    }

    /// What this socket's own timestamps show now: later than all that it has sent.
    fn clock(&self) -> Option<u32> {
        let now = self.row.clock + self.since.elapsed().as_nanos() as u64;
        let unit = match self.before.timestamps {
            Timestamps::None => return None,
            Timestamps::Milliseconds => 1_000_000,
            Timestamps::Microseconds => 1_000,
        };
        Some((now / unit) as u32).map(|clock| clock.wrapping_add(self.row.timestamp_offset))
    }
}
