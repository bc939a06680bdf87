//! `iter/bpf_sk_storage_map`: one row for every steered socket of the host, whatever namespace it lives in. Cost is
//! proportional to the steered sockets, not to all.

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_seq_write, bpf_skc_to_tcp_sock};
use sluice_common::{
    records::{CensusRow, Connection, Member, Phase},
    tables::TCP,
};

use crate::{
    maps::{TALLY, TALLY_BEFORE, add},
    socket,
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
    // SAFETY: plain integers and arrays: all zero is a value.
    let mut row: CensusRow = unsafe { zeroed() };
    // SAFETY: helpers without arguments; the iterator holds the socket and its storage while the program runs.
    unsafe {
        row.clock = bpf_ktime_get_ns();
        row.now = bpf_jiffies64() as u32;
        row.connection = *value;
    }
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
    let (phase, backend, since) = unsafe { ((*value).phase, (*value).backend_id, (*value).since) };
    let one = match phase {
        phase if phase == Phase::Opened as u8 => 1,
        phase if phase == Phase::Established as u8 => 1 << 32,
        _ => return 0,
    };
    if TALLY_BEFORE.get(0).is_some_and(|before| since < *before)
        && let Some(count) = TALLY.get_ptr_mut(backend)
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
