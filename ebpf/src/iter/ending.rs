//! Idle connections that the agent ends as their peers would: told under the lock of the socket, with what FINs need.

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_seq_write};
use sluice_common::{
    drain::EOF,
    ending::{EndingRow, IN_VAIN, OVER},
    flight::Side,
    records::KernelMember,
};

use crate::{socket, storage::ENDED};

const TCP_ESTABLISHED: u32 = 1;

/// How an idle connection ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The agent is told, and sends the FINs.
    Told,
    /// It has ended: what is left of the socket is of no use to anybody.
    Over,
    Abort,
}

/// `allowed` as in `Remains`.
#[inline(always)]
pub fn way(found: *mut c_void, allowed: u32) -> Way {
    match so_far(found) {
        OVER => Way::Over,
        IN_VAIN => Way::Abort,
        _ if allowed & EOF != 0 && socket::state(found) == TCP_ESTABLISHED => Way::Told,
        _ => Way::Abort,
    }
}

/// Whether both ends were told that the connection has ended.
#[inline(always)]
pub fn is_over(found: *mut c_void) -> bool {
    so_far(found) == OVER
}

#[inline(always)]
fn so_far(found: *mut c_void) -> u32 {
    let cookie: u64 = socket::read(found, KernelMember::Cookie);
    // SAFETY: the value is copied at once.
    unsafe { ENDED.get(cookie) }.copied().unwrap_or(0)
}

/// Writes the row of an idle connection.
#[inline(always)]
pub fn tell(seq: *mut c_void, found: *mut c_void, tcp: *mut c_void, backend_id: u32, side: Side) {
    // SAFETY: plain integers and arrays: all zero is a value.
    let mut row: EndingRow = unsafe { zeroed() };
    // SAFETY: the helper checks the socket, and gives it a cookie if it has none yet.
    row.cookie = unsafe { bpf_get_socket_cookie(tcp) };
    // SAFETY: helper without arguments.
    row.clock = unsafe { bpf_ktime_get_ns() };
    ((row.local, row.local_port), (row.remote, row.remote_port)) = socket::ends(found);
    row.backend_id = backend_id;
    row.accepted = u32::from(side == Side::Server);
    row.bytes_sent = socket::read(tcp, KernelMember::BytesSent);
    row.bytes_received = socket::read(tcp, KernelMember::BytesReceived);
    // What is idle has sent all that was written.
    row.next_sent = socket::read(tcp, KernelMember::WriteSeq);
    row.next_received = socket::read(tcp, KernelMember::RcvNxt);
    row.timestamp = socket::read(tcp, KernelMember::PeerTimestamp);
    row.timestamp_offset = socket::read(tcp, KernelMember::TimestampOffset);
    // SAFETY: `row` is initialized, padding included.
    unsafe { bpf_seq_write(seq.cast(), (&raw const row).cast(), size_of::<EndingRow>() as u32) };
}
