//! What a socket tells of itself, read from the kernel's own structures.
//!
//! The programs get their sockets as pointers whose type the verifier knows, and the agent gives the offsets as
//! constants: so each member is read by one load, with no helper.

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns};
use sluice_common::{
    flight::{Activity, LEAST_KEEPALIVE, UNKNOWN, is_late},
    records::{KernelMember, NO_MEMBER},
    tables::MAPPED,
};

use crate::storage::{hz, offset};

const AF_INET: u16 = 2;

/// An address with its port, both as the tables have them.
pub type Address = ([u32; 4], u16);

/// Local address and peer.
#[inline(always)]
pub fn ends(socket: *mut c_void) -> (Address, Address) {
    (local(socket), peer(socket))
}

#[inline(always)]
pub fn local(socket: *mut c_void) -> Address {
    let port = read::<u16>(socket, KernelMember::LocalPort).to_be();
    (address(socket, KernelMember::LocalV4, KernelMember::LocalV6), port)
}

#[inline(always)]
pub fn peer(socket: *mut c_void) -> Address {
    (address(socket, KernelMember::RemoteV4, KernelMember::RemoteV6), read(socket, KernelMember::RemotePort))
}

#[inline(always)]
fn address(socket: *mut c_void, v4: KernelMember, v6: KernelMember) -> [u32; 4] {
    let family: u16 = read(socket, KernelMember::Family);
    if family == AF_INET {
        return [0, 0, MAPPED, read(socket, v4)];
    }
    let word = |index: usize| read_at(socket, offset(v6) + index * 4);
    [word(0), word(1), word(2), word(3)]
}

/// TCP state as in `include/net/tcp_states.h`.
#[inline(always)]
pub fn state(socket: *mut c_void) -> u32 {
    u32::from(read::<u8>(socket, KernelMember::State))
}

/// Cookie of its network namespace.
#[inline(always)]
pub fn netns(socket: *mut c_void) -> u64 {
    let net: *mut c_void = read(socket, KernelMember::Net);
    read(net, KernelMember::NetCookie)
}

/// Number of the file of its network namespace.
#[inline(always)]
pub fn netns_inode(socket: *mut c_void) -> u32 {
    let net: *mut c_void = read(socket, KernelMember::Net);
    read(net, KernelMember::NetInode)
}

/// The traffic of a `tcp_sock`, FINs included.
#[inline(always)]
pub fn activity(tcp: *mut c_void) -> Activity {
    let (written, acknowledged): (u32, u32) = (read(tcp, KernelMember::WriteSeq), read(tcp, KernelMember::SndUna));
    let (received, copied): (u32, u32) = (read(tcp, KernelMember::RcvNxt), read(tcp, KernelMember::CopiedSeq));
    let acknowledging: u32 = read(tcp, KernelMember::SndWl1);
    let last_received = read(tcp, KernelMember::LastReceived);
    // SAFETY: helper without arguments.
    let now = unsafe { bpf_jiffies64() } as u32;
    Activity {
        now,
        last_sent: read(tcp, KernelMember::LastSent),
        last_received,
        bytes_sent: read(tcp, KernelMember::BytesSent),
        bytes_received: read(tcp, KernelMember::BytesReceived),
        unacknowledged: written.wrapping_sub(acknowledged),
        unread: received.wrapping_sub(copied),
        last_segment: received.wrapping_sub(acknowledging),
        keepalive: keepalive(tcp),
        hung_up: 0,
        segments_sent: read(tcp, KernelMember::SegmentsSent),
        spoke_for: u32::MAX,
        multipath: if is_absent(KernelMember::Multipath) { 0 } else { flag(tcp, KernelMember::Multipath) },
        written,
        answered: 0,
        ping_pong: if is_absent(KernelMember::PingPong) { UNKNOWN } else { flag(tcp, KernelMember::PingPong) },
        acknowledged_late: acknowledged_late(tcp, now, last_received),
    }
}

/// See [`Activity::acknowledged_late`].
#[inline(always)]
fn acknowledged_late(tcp: *mut c_void, now: u32, last_received: u32) -> u32 {
    if is_absent(KernelMember::Delivered) {
        return 0;
    }
    let delivered: u64 = read(tcp, KernelMember::Delivered);
    // SAFETY: helper without arguments.
    let clock = unsafe { bpf_ktime_get_ns() };
    u32::from(is_late((clock / 1000).saturating_sub(delivered) / 1000, now, last_received, hz()))
}

#[inline(always)]
fn is_absent(member: KernelMember) -> bool {
    offset(member) == NO_MEMBER as usize
}

#[inline(always)]
fn flag(tcp: *mut c_void, member: KernelMember) -> u32 {
    u32::from(read::<u8>(tcp, member))
}

/// See [`Activity::keepalive`].
#[inline(always)]
fn keepalive(tcp: *mut c_void) -> u32 {
    /// `SOCK_KEEPOPEN` of `enum sock_flags`.
    const KEEP_OPEN: u64 = 1 << 3;
    let (flags, time): (u64, u32) = (read(tcp, KernelMember::Flags), read(tcp, KernelMember::KeepaliveTime));
    match (flags & KEEP_OPEN, time) {
        (0, _) => 0,
        (_, 0) => LEAST_KEEPALIVE * hz(),
        (_, time) => time,
    }
}

/// A member of the structure that the verifier takes this pointer for; zero when it cannot be read.
#[inline(always)]
pub fn read<T: Copy>(structure: *mut c_void, member: KernelMember) -> T {
    read_at(structure, offset(member))
}

#[inline(always)]
pub fn read_at<T: Copy>(structure: *mut c_void, offset: usize) -> T {
    // SAFETY: T is a plain integer or pointer; the verifier checks the type, the kernel catches a wrong address.
    unsafe { ptr::read_volatile(structure.cast::<u8>().wrapping_add(offset).cast()) }
}
