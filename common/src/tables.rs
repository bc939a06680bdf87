//! The tables that the agent writes and the programs read.
//!
//! Sizes are kept to cache lines: a pick touches one line each of FRONTENDS, SERVICES, SLOTS, BACKENDS and NODES.

use crate::sequence::SEQUENCES;

/// An address with port and protocol, as the kernel hands it to the socket hooks.
///
/// IPv4 is held in its IPv6-mapped form (`::ffff:a.b.c.d`), so that an IPv4 destination reached through an IPv6
/// socket has the same key. Words and port are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Endpoint {
    pub address: [u32; 4],
    pub port: u16,
    /// IANA protocol number: 6 or 17. Wide enough for the kernel's own numbers: MPTCP (262) is not TCP.
    pub protocol: u16,
}

pub const TCP: u16 = 6;
pub const UDP: u16 = 17;

/// Third word of an IPv4-mapped address, in network byte order.
pub const MAPPED: u32 = 0xffff_u32.to_be();

impl Endpoint {
    #[inline(always)]
    pub const fn v4(address: u32, port: u16, protocol: u16) -> Self {
        Self::v6([0, 0, MAPPED, address], port, protocol)
    }

    #[inline(always)]
    pub const fn v6(address: [u32; 4], port: u16, protocol: u16) -> Self {
        Self { address, port, protocol }
    }

    /// Multiplicative hashing (Knuth, The Art of Computer Programming, 6.4) with the constants of splitmix64: the high
    /// bits of a product depend on all bits of the factor.
    #[inline(always)]
    pub const fn hash(&self) -> u32 {
        let low = ((self.address[2] as u64) << 32) | self.address[3] as u64;
        let high = ((self.address[0] as u64) << 32) | self.address[1] as u64;
        let end = ((self.port as u64) << 16) | self.protocol as u64;
        let hash = (low ^ high.wrapping_mul(0x94d0_49bb_1331_11eb)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 32) ^ end).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32) as u32
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        is_mapped(&self.address)
    }
}

/// Whether four words in network byte order are an IPv4-mapped IPv6 address.
#[inline(always)]
pub const fn is_mapped(address: &[u32; 4]) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED
}

#[cfg(feature = "std")]
impl Endpoint {
    /// The kernel's form of a socket address. An IPv4-mapped IPv6 address and its IPv4 address give the same value.
    pub fn new(address: std::net::SocketAddr, protocol: u16) -> Self {
        let octets = match address.ip() {
            std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            std::net::IpAddr::V6(ip) => ip.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self::v6([word(0), word(4), word(8), word(12)], address.port().to_be(), protocol)
    }

    /// The address as people write it: IPv4 where it is mapped.
    pub fn socket_addr(&self) -> std::net::SocketAddr {
        socket_addr(&self.address, self.port)
    }
}

/// Four words and a port in network byte order as a socket address, IPv4 where it is mapped.
#[cfg(feature = "std")]
pub fn socket_addr(address: &[u32; 4], port: u16) -> std::net::SocketAddr {
    let mut octets = [0u8; 16];
    for (chunk, word) in octets.chunks_exact_mut(4).zip(address) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let ip = std::net::Ipv6Addr::from(octets).to_canonical();
    std::net::SocketAddr::new(ip, u16::from_be(port))
}

/// How a service chooses among its slots.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// Step through the slots in order.
    Spread = 0,
    /// Draw a slot.
    Random = 1,
    /// The client's identity chooses the slot.
    Hash = 2,
    /// Step through the slots in an order that no caller falls into step with: see [`crate::sequence`].
    Scatter = 3,
}

/// A service's current table, packed so that one aligned 64-bit store replaces it whole.
///
/// | bits | meaning |
/// |---|---|
/// | 0..26 | `base`: index of the first slot in SLOTS |
/// | 26..41 | `length`: number of slots; 0 is the explicit empty table |
/// | 41..55 | `distinct`: number of entries of the list of distinct backends that follows the slots |
/// | 55..57 | balance |
/// | 57 | pass: with no open backend, let the call go to the original address rather than refuse it |
/// | 63 | present: an all-zero word is "no such service", never "nothing left" |
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableWord(pub u64);

/// Slots in one entry of SLOTS. The kernel rounds the entries of an array up to eight bytes: with one slot in each, half
/// of the memory would be padding, and a mapping of it would not be a plain sequence of slots.
pub const SLOTS_PER_ENTRY: u32 = 2;
/// Largest number of slots in SLOTS.
pub const MAX_SLOTS: u32 = 1 << 26;
/// Largest number of slots in one table.
pub const MAX_TABLE: u32 = (1 << 15) - 1;
/// Largest number of distinct backends in one table.
pub const MAX_DISTINCT: u32 = (1 << 14) - 1;

impl TableWord {
    pub const fn new(base: u32, length: u32, distinct: u32, balance: Balance, pass: bool) -> Self {
        Self(
            (base & (MAX_SLOTS - 1)) as u64
                | (((length & MAX_TABLE) as u64) << 26)
                | (((distinct & MAX_DISTINCT) as u64) << 41)
                | ((balance as u64) << 55)
                | ((pass as u64) << 57)
                | (1 << 63),
        )
    }
    #[inline(always)]
    pub const fn base(self) -> u32 {
        self.0 as u32 & (MAX_SLOTS - 1)
    }
    #[inline(always)]
    pub const fn length(self) -> u32 {
        (self.0 >> 26) as u32 & MAX_TABLE
    }
    #[inline(always)]
    pub const fn distinct(self) -> u32 {
        (self.0 >> 41) as u32 & MAX_DISTINCT
    }
    #[inline(always)]
    pub const fn balance(self) -> u32 {
        (self.0 >> 55) as u32 & 3
    }
    #[inline(always)]
    pub const fn pass(self) -> bool {
        (self.0 >> 57) & 1 == 1
    }
    #[inline(always)]
    pub const fn present(self) -> bool {
        self.0 >> 63 == 1
    }
}

/// Entry of SERVICES, by service id. A cache line of its own: a sequence is written by every pick.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct ServiceEntry {
    /// A [`TableWord`]; replaced by one store of the agent.
    pub table: u64,
    /// Where the sequences begin: random, set once when the service is made. (In the tables of an agent that knew no
    /// others it is a sequence itself, and stops where that agent's programs are replaced.)
    pub start: u64,
    /// Connections and datagrams that found no open backend.
    pub no_backend: u64,
    /// CLOCK_MONOTONIC ns: when a pick last read the clock, at least once in every tick of the kernel with a pick.
    pub clock_read: u64,
    /// Draws of `spread` and (in lanes) of `scatter`, by [`crate::sequence::sequence_of`].
    pub sequences: [u64; SEQUENCES],
}

/// Entry of BACKENDS, by backend id. Address and port never change while the id is in use.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendEntry {
    pub address: [u32; 4],
    pub port: u16,
    /// 1: datagram flows that were answered stay while this is zeroed or has no weight, see [`crate::flows::goes_on`].
    pub keeps_flows: u16,
    /// Index in NODES; 0 is the node of backends that name none, and is always open.
    pub node: u32,
    /// 0 is open; else the reasons, [`CLOSED_ZERO`] and the others.
    pub closed: u32,
    /// ms: an answered flow that is quiet for so long is picked anew; 0: [`crate::flows::ANSWERED_FLOW_IDLE`].
    pub flow_timeout: u32,
}

/// Entry of NODES, by node id.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// 0 is open; else the reasons, [`CLOSED_ZERO`] and [`CLOSED_FLOWS`].
    pub closed: u32,
    pub padding: u32,
}

/// Closed by an operator's zero.
pub const CLOSED_ZERO: u32 = 1;
/// Closed because its effective weight is 0.
pub const CLOSED_WEIGHT: u32 = 2;
/// Closed because it left the configuration.
pub const CLOSED_REMOVED: u32 = 4;

/// Closed because it is not ready.
pub const CLOSED_UNREADY: u32 = 8;
/// Closed because a rule has ejected it.
pub const CLOSED_EJECTED: u32 = 16;
/// Closed to flows that a service keeps, too: with [`CLOSED_ZERO`], whose drain is over.
pub const CLOSED_FLOWS: u32 = 32;

/// Bounds of the connect time histogram are `64 us << i`; the last bucket has none.
pub const CONNECT_BUCKETS: usize = 16;
/// Bounds of the connection duration histogram are `1 ms << 2 i`; the last bucket has none.
pub const DURATION_BUCKETS: usize = 16;

/// Why a connection was never established. Index of [`Counters::failed`].
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectionFailure {
    /// The backend answered the SYN with a reset.
    Refused = 0,
    /// No answer until the kernel gave up.
    TimedOut = 1,
    /// The network said that the backend cannot be reached.
    Unreachable = 2,
    /// The caller gave up first.
    Abandoned = 3,
}

pub const FAILURES: usize = 4;

/// Entry of COUNTERS, by backend id. Fields only grow while the id is in use, except `last_pick`, and `opened` by
/// a datagram socket that turns out to be unused.
///
/// Shared between CPUs and added to atomically: it costs a locked add on a line that the pick has to write anyway,
/// and 256 bytes a backend on a host of any size, where a per-CPU array would take 16 KiB on 64 CPUs.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Times that this backend was chosen: connections, connected datagram sockets and datagram flows.
    pub picked: u64,
    /// CLOCK_MONOTONIC ns, read before the backend was seen to be open: a pick that the agent's zero did not stop
    /// carries a time before that zero. Reading the clock costs as much as the rest of a pick: within one tick of the
    /// kernel (1 to 10 ms), the first pick of a service reads it for all, except for a while after
    /// [`Meta::exact_until`] was set.
    pub last_pick: u64,
    /// Connections that sent their SYN; connected datagram sockets, but for those that were closed at once and unused.
    pub opened: u64,
    /// Of datagram sockets: those known to be used.
    pub established: u64,
    /// Established connections that ended.
    pub closed: u64,
    /// Established connections that ended by a reset from the backend.
    pub resets: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Connections whose end was never seen, as found by a census; added by the agent.
    pub lost: u64,

    /// Not established, by [`ConnectionFailure`].
    pub failed: [u64; FAILURES],
    /// Sum of smoothed round-trip times, us, of `rtt_samples` readings: at the handshake and at the end.
    pub rtt_sum: u64,
    pub rtt_samples: u64,
    /// Sum of connect times of established connections, us.
    pub connect_sum: u64,
    /// Sum of durations of closed connections, ms.
    pub duration_sum: u64,

    pub connect_time: [u32; CONNECT_BUCKETS],
    pub duration: [u32; DURATION_BUCKETS],
}

/// The only entry of META.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub abi_version: u32,
    /// The low half of that store's revision when it last held all of what the tables do. A store whose own is lower is an
    /// older copy. 0: not known.
    pub revision: u32,
    /// Identity of the agent's store whose ids these tables hold.
    pub store: [u8; 16],
    /// CLOCK_MONOTONIC ns. Until then every pick reads the clock.
    pub exact_until: u64,
}

const _: () = {
    assert!(size_of::<Endpoint>() == 20);
    assert!(size_of::<ServiceEntry>() == 64);
    assert!(size_of::<BackendEntry>() == 32);
    assert!(size_of::<NodeEntry>() == 8);
    assert!(size_of::<Counters>() == 256);
    assert!(size_of::<Meta>() == 32);
};

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn a_table_word_gives_back_what_was_packed() {
        let t = TableWord::new(MAX_SLOTS - 1, MAX_TABLE, MAX_DISTINCT, Balance::Hash, true);
        assert_eq!(
            (t.base(), t.length(), t.distinct(), t.balance(), t.pass(), t.present()),
            (MAX_SLOTS - 1, MAX_TABLE, MAX_DISTINCT, 2, true, true)
        );
        let empty = TableWord::new(0, 0, 0, Balance::Spread, false);
        assert!(empty.present() && !TableWord(0).present());
    }

    #[test]
    fn an_address_has_one_form() {
        let v4: std::net::SocketAddr = "10.1.2.3:80".parse().unwrap();
        let mapped: std::net::SocketAddr = "[::ffff:10.1.2.3]:80".parse().unwrap();
        assert_eq!(Endpoint::new(v4, TCP), Endpoint::new(mapped, TCP));
        assert_eq!(Endpoint::new(mapped, TCP).socket_addr(), v4);
        let v6: std::net::SocketAddr = "[fd00::1]:53".parse().unwrap();
        assert_eq!(Endpoint::new(v6, UDP).socket_addr(), v6);
        assert!(!Endpoint::new(v6, UDP).is_v4());
    }

    #[test]
    fn neighbouring_frontends_spread() {
        let mut homes = std::collections::BTreeSet::new();
        for host in 0..=255u8 {
            for port in 0..40u16 {
                let ip = std::net::Ipv4Addr::new(10, 96, (port % 4) as u8, host);
                homes.insert(Endpoint::new((ip, 8000 + port).into(), TCP).hash() & 0x7_ffff);
            }
        }
        // 10,240 balls in 524,288 bins leave 10,141 bins occupied on average.
        assert!(homes.len() > 10_000, "{}", homes.len());
    }
}
