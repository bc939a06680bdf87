//! One row, or one more in a count, for every steered socket.
//!
//! `iter/bpf_sk_storage_map` finds those of the whole host, whatever namespace they live in, at a cost that is
//! proportional to the steered sockets, not to all. Where the kernel refuses that iterator (some are hardened so),
//! `iter/tcp` and `iter/udp` find those of one namespace after the other.

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_seq_write, bpf_skc_to_tcp_sock};
use sluice_common::{
    records::{CensusRow, Connection, Member, Phase},
    tables::TCP,
};

use crate::{
    maps::{TALLY, TALLY_BEFORE, add},
    socket, walk,
};

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Context {
    /// First member: the seq_file to write to.
    meta: *const *mut c_void,
    map: *mut c_void,
    pub socket: *mut c_void,
    pub value: *const Connection,
}

/// Writes a row for every socket.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn census(ctx: *mut Context) -> i32 {
    // SAFETY: the context lives as long as the program runs.
    let (seq, found, value) = unsafe { (*(*ctx).meta, (*ctx).socket, (*ctx).value) };
    if found.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: the iterator holds the socket and its storage while the program runs.
    write(seq, found, unsafe { &*value })
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn census_tcp(ctx: *mut walk::Context) -> i32 {
    match walk::tcp(ctx) {
        Some((found, record)) => write(walk::seq(ctx), found, record),
        None => 0,
    }
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn census_udp(ctx: *mut walk::Context) -> i32 {
    match walk::udp(ctx) {
        Some((found, record)) => write(walk::seq(ctx), found, record),
        None => 0,
    }
}

#[inline(always)]
fn write(seq: *mut c_void, found: *mut c_void, record: &Connection) -> i32 {
    // SAFETY: plain integers and arrays: all zero is a value.
    let mut row: CensusRow = unsafe { zeroed() };
    // SAFETY: helpers without arguments.
    unsafe {
        row.clock = bpf_ktime_get_ns();
        row.now = bpf_jiffies64() as u32;
    }
    row.connection = *record;
    describe(found, &mut row);
    // SAFETY: `row` is initialized, padding included.
    unsafe { bpf_seq_write(seq.cast(), (&raw const row).cast(), size_of::<CensusRow>() as u32) };
    0
}

/// Counts the recorded connections by backend, and writes no rows: the walk is then one, and misses nobody. (One that
/// fills the reader's buffer is resumed by position, and that shifts when sockets go.)
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn tally(ctx: *mut Context) -> i32 {
    // SAFETY: the context lives as long as the program runs.
    let value = unsafe { (*ctx).value };
    if value.is_null() {
        return 0;
    }
    // SAFETY: the iterator holds the storage while the program runs.
    tell(unsafe { &*value })
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn tally_tcp(ctx: *mut walk::Context) -> i32 {
    walk::tcp(ctx).map_or(0, |(_, record)| tell(record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn tally_udp(ctx: *mut walk::Context) -> i32 {
    walk::udp(ctx).map_or(0, |(_, record)| tell(record))
}

#[inline(always)]
fn tell(record: &Connection) -> i32 {
    let one = match record.phase {
        phase if phase == Phase::Opened as u8 => 1,
        phase if phase == Phase::Established as u8 => 1 << 32,
        _ => return 0,
    };
    if TALLY_BEFORE.get(0).is_some_and(|before| record.since < *before)
        && let Some(count) = TALLY.get_ptr_mut(record.backend_id)
    {
        add(count, one);
    }
    0
}

#[inline(always)]
fn describe(found: *mut c_void, row: &mut CensusRow) {
    ((row.local, row.local_port), (row.remote, row.remote_port)) = socket::ends(found);
    row.state = socket::state(found);
    row.cookie = socket::read(found, Member::Cookie);
    row.netns = socket::netns(found);
    if row.connection.protocol != TCP {
        return;
    }
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
    if tcp.is_null() {
        return;
    }
    let activity = socket::activity(tcp);
    row.last_sent = activity.last_sent;
    row.last_received = activity.last_received;
    row.unacknowledged = activity.unacknowledged;
    row.unread = activity.unread;
    row.last_segment = activity.last_segment;
    row.keepalive = activity.keepalive;
    row.segments_sent = activity.segments_sent;
    row.multipath = activity.multipath;
    row.bytes_sent = activity.bytes_sent;
    row.bytes_received = activity.bytes_received;
}
