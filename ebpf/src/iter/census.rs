//! One row for every steered socket. Where the kernel refuses the iterator over records (some are hardened so), `census_tcp`
//! and `census_udp` find the same sockets, one namespace after the other.

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_ns, bpf_seq_write, bpf_skc_to_tcp_sock};
use sluice_common::{
    records::{CensusRow, ConnectionRecord, KernelMember},
    tables::TCP,
};

use super::walk::{self, Records, Sockets};
use crate::socket;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn census(ctx: *mut Records) -> i32 {
    walk::records(ctx).map_or(0, |(found, record)| write(walk::seq(ctx), found, record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn census_tcp(ctx: *mut Sockets) -> i32 {
    walk::tcp(ctx).map_or(0, |(found, record)| write(walk::seq(ctx), found, record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn census_udp(ctx: *mut Sockets) -> i32 {
    walk::udp(ctx).map_or(0, |(found, record)| write(walk::seq(ctx), found, record))
}

#[inline(always)]
fn write(seq: *mut c_void, found: *mut c_void, record: &ConnectionRecord) -> i32 {
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

#[inline(always)]
fn describe(found: *mut c_void, row: &mut CensusRow) {
    ((row.local, row.local_port), (row.remote, row.remote_port)) = socket::ends(found);
    row.state = socket::state(found);
    row.cookie = socket::read(found, KernelMember::Cookie);
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
    row.written = activity.written;
    row.ping_pong = activity.ping_pong;
    row.acknowledged_late = activity.acknowledged_late;
    row.bytes_sent = activity.bytes_sent;
    row.bytes_received = activity.bytes_received;
}
