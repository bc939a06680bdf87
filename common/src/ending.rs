//! Idle connections that end as their peers would end them: what the programs tell the agent, which sends the FINs.

/// One connection that may end, as `visit_tcp` writes it while it holds the socket's lock.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct EndingRow {
    /// Of the socket.
    pub cookie: u64,
    /// CLOCK_MONOTONIC ns at the reading.
    pub clock: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Local and remote address as the socket has them; ports in network byte order.
    pub local: [u32; 4],
    pub remote: [u32; 4],
    pub local_port: u16,
    pub remote_port: u16,
    pub backend_id: u32,
    /// 1 on the accepting side, 0 on the caller's.
    pub accepted: u32,
    /// Number of the next byte that this socket sends: everything before it is acknowledged.
    pub next_sent: u32,
    /// Number of the next byte that it receives: everything before it was read.
    pub next_received: u32,
    /// The peer's latest timestamp, which answers echo. Of no use without timestamps.
    pub timestamp: u32,
    /// What this socket adds to the clock for its own timestamps.
    pub timestamp_offset: u32,
    pub padding: u32,
}

/// Entry of ENDED, by the cookie of a socket: both ends were told, and the connection counts no more. What is left of the
/// socket goes at the next look.
pub const OVER: u32 = 1;
/// The same: the FINs did not arrive, and the connection is aborted.
pub const IN_VAIN: u32 = 2;

const _: () = assert!(size_of::<EndingRow>() == 96);
