//! The programs, and the ways out of them that are counted. Not counted: callbacks of `sock_ops` and `sock_release` that
//! change nothing, and the ways out of `turn`, `keepalive` and the iterators.

/// An enum that is an index: its variants count from 0, `ALL` has them in that order, and each has a name.
/// A new variant goes to the end: VERDICTS is pinned, and its counts are found by these indexes.
macro_rules! index {
    ($(#[$doc:meta])* pub enum $enum:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $enum {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $enum {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Stable: part of pins and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

index! {
    /// The programs that are attached. The name is that in the eBPF object, of the pin and in metrics.
    pub enum Program {
        Connect4 = "connect4",
        Connect6 = "connect6",
        Sendmsg4 = "sendmsg4",
        Sendmsg6 = "sendmsg6",
        Recvmsg4 = "recvmsg4",
        Recvmsg6 = "recvmsg6",
        Getpeername4 = "getpeername4",
        Getpeername6 = "getpeername6",
        SockOps = "sock_ops",
        SockRelease = "sock_release",
        /// Measures turn times while a service asks for it; counts no verdicts.
        Turn = "turn",
        /// Remembers which side spoke last, before a keep-alive probe blurs it; counts no verdicts.
        Keepalive = "keepalive",
    }
}

index! {
    /// How a program ended. The name is the label `verdict` in metrics. What the kernel is told for each is decided once
    /// for a family of hooks, in the eBPF crate.
    pub enum Verdict {
        /// The address is no frontend, or the socket was never steered: untouched.
        NotOurs = "not_ours",
        /// A backend's address was written.
        Steered = "steered",
        /// As `Steered`, but the connection's record could not be stored: it is not tracked.
        SteeredUntracked = "steered_untracked",
        /// A datagram went to the backend that its flow already had.
        Kept = "kept",
        /// The socket carries the mark that passes untouched.
        Marked = "marked",
        /// No open backend: the caller got ECONNREFUSED.
        Refused = "refused",
        /// No open backend: the call went to the original address.
        Passed = "passed",
        /// A frontend without its service, or a backend of the other address family: the call went to the original address.
        Broken = "broken",
        /// The frontend's address was given back to the application.
        Translated = "translated",
        /// The socket's peer is not the recorded backend: untouched.
        Stale = "stale",
        /// Connection tracking: SYN sent.
        Opened = "opened",
        /// Connection tracking: handshake done.
        Established = "established",
        /// Connection tracking: never established.
        Failed = "failed",
        /// Connection tracking: ended.
        Closed = "closed",
        /// Connection tracking: a segment was sent again.
        Retransmitted = "retransmitted",
        /// Connection tracking: ended without its end having been seen; counted when the socket was used again or released.
        Recovered = "recovered",
    }
}

impl Program {
    /// Those that choose a backend.
    pub const CHOOSING: [Self; 4] = [Self::Connect4, Self::Connect6, Self::Sendmsg4, Self::Sendmsg6];

    /// Whether it lives on a hook of the cgroup, where it outlives the agent.
    pub const fn is_of_cgroup(self) -> bool {
        !matches!(self, Self::Turn | Self::Keepalive)
    }

    /// Attached in this order: what follows and translates before what steers. Detached in the opposite one.
    pub const ORDER: [Self; Self::ALL.len()] = [
        Self::SockRelease,
        Self::SockOps,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
        Self::Turn,
        Self::Keepalive,
    ];
}

/// Programs and verdicts that VERDICTS has room for: more than there are, so that one that is added needs no new table.
const PROGRAMS: u32 = 32;
const EACH: u32 = 32;
/// Number of entries of VERDICTS.
pub const VERDICTS: u32 = PROGRAMS * EACH;

/// Index into VERDICTS.
#[inline(always)]
pub const fn index(program: Program, verdict: Verdict) -> u32 {
    program as u32 * EACH + verdict as u32
}

const _: () = {
    assert!(Program::ALL.len() <= PROGRAMS as usize && Verdict::ALL.len() <= EACH as usize);
    // Pinned counts are found by these numbers: whatever is new comes at the end of its list.
    assert!(Program::Keepalive as u32 == 11 && Verdict::Recovered as u32 == 15);
    let mut ordered = 0_u64;
    let mut i = 0;
    while i < Program::ORDER.len() {
        ordered |= 1 << Program::ORDER[i] as u32;
        i += 1;
    }
    assert!(ordered == (1 << Program::ALL.len()) - 1, "a program that is attached twice is in the place of another");
};
