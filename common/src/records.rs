//! What the programs write: the record of a steered connection, and the rows of a census.

use crate::{
    flight::Activity,
    tables::{BackendEntry, Endpoint},
};

/// How far a recorded connection has come.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// A backend was written into connect(); nothing was sent yet.
    Picked = 0,
    /// SYN sent; a datagram socket connected, of which nothing shows yet that it is used. Resolvers connect one to each
    /// address that they know, to learn which source the kernel would take (RFC 6724), and send nothing.
    Opened = 1,
    Established = 2,
    /// Ended, and counted as such.
    Ended = 3,
    /// Just made, by the program that still runs.
    New = 4,
}

/// Socket storage CONNECTIONS: lives exactly as long as its socket.
///
/// It names both ends of the choice, because a socket can be disconnected and connected again with no hook in
/// between: a reader compares `backend` with the socket's real peer before it trusts the record.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct ConnectionRecord {
    /// What the application asked for; while `protocol` is 0, the frontend of the socket's last flow, and its backend.
    pub frontend: [u32; 4],
    /// Where it was sent.
    pub backend: [u32; 4],
    pub frontend_port: u16,
    pub backend_port: u16,
    /// 0 when the socket was never connected through a frontend and only has datagram flows.
    pub protocol: u16,
    /// A [`Phase`].
    pub phase: u8,
    /// Whether the socket has datagram flows in FLOWS ([`HAS_FLOWS`](crate::opening::HAS_FLOWS)), and who opened a TCP connection's conversation: see
    /// [`crate::opening`].
    pub notes: u8,
    pub service_id: u32,
    pub backend_id: u32,
    /// Process id (thread group) that called connect(), in the initial pid namespace.
    pub pid: u32,
    /// While connecting: the backend's count of answers when the SYN was sent (see STREAKS); 0 in records older than
    /// that table. Once established: the number of the next byte to send when an answer came that the programs noticed. It
    /// was the last one if this is still the number (see TURNS and `flight::Activity::answered`).
    pub seen: u32,
    /// CLOCK_MONOTONIC ns: of the pick, as in `Counters::last_pick`, then of the establishment.
    pub since: u64,
}

/// ns; a datagram socket that is still connected after so long was used.
pub const LEAST_USE: u64 = 10_000_000;

/// One steered socket in a census, as `iter/bpf_sk_storage_map` writes it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct CensusRow {
    pub connection: ConnectionRecord,
    pub cookie: u64,
    pub netns: u64,
    /// Local and remote address as the socket has them.
    pub local: [u32; 4],
    pub remote: [u32; 4],
    pub local_port: u16,
    pub remote_port: u16,
    /// TCP state as in `include/net/tcp_states.h`.
    pub state: u32,
    /// `jiffies` at the reading, and of the last data sent and received (low 32 bits).
    pub now: u32,
    pub last_sent: u32,
    pub last_received: u32,
    /// Written by the application and not yet acknowledged.
    pub unacknowledged: u32,
    /// Received and not yet read by the application.
    pub unread: u32,
    /// See [`Activity::last_segment`].
    pub last_segment: u32,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// CLOCK_MONOTONIC ns at the reading.
    pub clock: u64,
    /// See [`Activity::keepalive`].
    pub keepalive: u32,
    /// See [`Activity::segments_sent`].
    pub segments_sent: u32,
    /// See [`Activity::multipath`].
    pub multipath: u32,
    /// See [`Activity::written`].
    pub written: u32,
    /// See [`Activity::acknowledged_late`].
    pub acknowledged_late: u32,
    /// See [`Activity::ping_pong`].
    pub ping_pong: u32,
}

/// Members of kernel structures that the programs read. Their offsets differ between kernels: the agent reads them from
/// the kernel's BTF and sets them as constants, indexed by this enum.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelMember {
    SkErr = 0,
    Family,
    State,
    LocalPort,
    RemotePort,
    LocalV4,
    RemoteV4,
    LocalV6,
    RemoteV6,
    Cookie,
    Net,
    NetCookie,
    NetInode,
    LastSent,
    LastReceived,
    WriteSeq,
    SndUna,
    RcvNxt,
    CopiedSeq,
    BytesSent,
    BytesReceived,
    SndWl1,
    Flags,
    KeepaliveTime,
    SegmentsSent,
    /// Kernels without MPTCP do not have it.
    Multipath,
    /// CLOCK_MONOTONIC us: when the peer acknowledged data last.
    Delivered,
    PingPong,
    /// The peer's latest timestamp.
    PeerTimestamp,
    /// What a socket adds to the clock for its own timestamps.
    TimestampOffset,
    // For turn times; a kernel without them measures none.
    /// ns: when the last segment was sent.
    SentAt,
    SndNxt,
    SegmentControl,
    // Within SegmentControl.
    SegmentStart,
    SegmentEnd,
    SegmentAck,
    SegmentFlags,
}

/// Number of [`KernelMember`]s.
pub const MEMBERS: usize = 37;
/// The offset of a member that the kernel does not have.
pub const NO_MEMBER: u32 = u32::MAX;

const _: () = {
    assert!(KernelMember::SegmentFlags as usize + 1 == MEMBERS);
    assert!(size_of::<ConnectionRecord>() == 64);
    assert!(size_of::<CensusRow>() == 192);
};

impl CensusRow {
    /// What the socket told about its traffic; the kernel has `hz` jiffies a second.
    pub fn activity(&self, hz: u32) -> Activity {
        let activity = Activity {
            now: self.now,
            last_sent: self.last_sent,
            last_received: self.last_received,
            bytes_sent: self.bytes_sent,
            bytes_received: self.bytes_received,
            unacknowledged: self.unacknowledged,
            unread: self.unread,
            last_segment: self.last_segment,
            keepalive: self.keepalive,
            hung_up: 0,
            segments_sent: self.segments_sent,
            spoke_for: u32::MAX,
            multipath: self.multipath,
            written: self.written,
            answered: 0,
            ping_pong: self.ping_pong,
            acknowledged_late: self.acknowledged_late,
        };
        self.connection.tell(activity.without_fin(self.state), self.clock, hz)
    }

    /// Whether the record is about what the socket does now. A socket can be disconnected and connected again with no
    /// hook in between, and one that has flows only was never connected.
    pub fn is_current(&self) -> bool {
        let record = &self.connection;
        record.protocol != 0 && record.is_open() && record.went_to(&self.remote, self.remote_port)
    }
}

impl ConnectionRecord {
    /// The record of a choice that is just made.
    #[inline(always)]
    pub fn picked(
        frontend: &Endpoint,
        backend: &BackendEntry,
        service_id: u32,
        backend_id: u32,
        pid: u32,
        since: u64,
    ) -> Self {
        Self {
            frontend: frontend.address,
            backend: backend.address,
            frontend_port: frontend.port,
            backend_port: backend.port,
            protocol: frontend.protocol,
            phase: Phase::New as u8,
            notes: 0,
            service_id,
            backend_id,
            pid,
            seen: 0,
            since,
        }
    }

    /// Whether `address` and `port` (network byte order) are where this connection was sent.
    #[inline(always)]
    pub fn went_to(&self, address: &[u32; 4], port: u16) -> bool {
        self.backend_port == port
            && self.backend[3] == address[3]
            && self.backend[2] == address[2]
            && self.backend[1] == address[1]
            && self.backend[0] == address[0]
    }

    /// Whether this is the socket's connection now, and not one that never began or has ended.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.phase == Phase::Opened as u8 || self.phase == Phase::Established as u8
    }

    /// What the socket shows, and what this record knows besides. `clock`: CLOCK_MONOTONIC ns.
    #[inline(always)]
    pub const fn tell(&self, activity: Activity, clock: u64, hz: u32) -> Activity {
        let knows_answers = self.phase == Phase::Established as u8;
        let answered = (knows_answers && self.seen == activity.written) as u32;
        Activity { answered, ..activity }.begun(self.since, clock, hz)
    }

    #[inline(always)]
    pub fn asked_for(&self, endpoint: &Endpoint) -> bool {
        self.frontend_port == endpoint.port
            && self.protocol == endpoint.protocol
            && self.frontend[3] == endpoint.address[3]
            && self.frontend[2] == endpoint.address[2]
            && self.frontend[1] == endpoint.address[1]
            && self.frontend[0] == endpoint.address[0]
    }
}
