//! Every way out of a program has a name and a counter.

/// The programs, as the first half of an index into VERDICTS.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Connect4 = 0,
    Connect6 = 1,
    Sendmsg4 = 2,
    Sendmsg6 = 3,
    Recvmsg4 = 4,
    Recvmsg6 = 5,
    Getpeername4 = 6,
    Getpeername6 = 7,
    SockOps = 8,
    SockRelease = 9,
}

/// How a program ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// The address is no frontend, or the socket was never steered: untouched.
    NotOurs = 0,
    /// A backend's address was written.
    Steered = 1,
    /// As `Steered`, but the connection's record could not be stored: it is not tracked.
    SteeredUntracked = 2,
    /// A datagram went to the backend that its flow already had.
    Kept = 3,
    /// The socket carries the mark that passes untouched.
    Marked = 4,
    /// No open backend: the caller got ECONNREFUSED.
    Refused = 5,
    /// No open backend: the call went to the original address.
    Passed = 6,
    /// A frontend without its service, or a backend of the other address family: the call went to the original address.
    Broken = 7,
    /// The frontend's address was given back to the application.
    Translated = 8,
    /// The socket's peer is not the recorded backend: untouched.
    Stale = 9,
    /// Connection tracking: SYN sent.
    Opened = 10,
    /// Connection tracking: handshake done.
    Established = 11,
    /// Connection tracking: never established.
    Failed = 12,
    /// Connection tracking: ended.
    Closed = 13,
    /// Connection tracking: a segment was sent again.
    Retransmitted = 14,
    /// Connection tracking: ended without its end having been seen; counted when the socket was used again or released.
    Recovered = 15,
}

impl Program {
    pub const ALL: [Self; 10] = [
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::SockOps,
        Self::SockRelease,
    ];

    /// Name of the program in the eBPF object, of its pin and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::SockOps => "sock_ops",
            Self::SockRelease => "sock_release",
        }
    }
}

impl Verdict {
    pub const ALL: [Self; 16] = [
        Self::NotOurs,
        Self::Steered,
        Self::SteeredUntracked,
        Self::Kept,
        Self::Marked,
        Self::Refused,
        Self::Passed,
        Self::Broken,
        Self::Translated,
        Self::Stale,
        Self::Opened,
        Self::Established,
        Self::Failed,
        Self::Closed,
        Self::Retransmitted,
        Self::Recovered,
    ];

    /// Value of the label `verdict` in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotOurs => "not_ours",
            Self::Steered => "steered",
            Self::SteeredUntracked => "steered_untracked",
            Self::Kept => "kept",
            Self::Marked => "marked",
            Self::Refused => "refused",
            Self::Passed => "passed",
            Self::Broken => "broken",
            Self::Translated => "translated",
            Self::Stale => "stale",
            Self::Opened => "opened",
            Self::Established => "established",
            Self::Failed => "failed",
            Self::Closed => "closed",
            Self::Retransmitted => "retransmitted",
            Self::Recovered => "recovered",
        }
    }
}

/// Number of entries of VERDICTS.
pub const VERDICTS: u32 = 256;

/// Index into VERDICTS.
#[inline(always)]
pub const fn index(program: Program, verdict: Verdict) -> u32 {
    program as u32 * 16 + verdict as u32
}
