//! `iter/bpf_sk_storage_map`: one row for every steered socket of the host, whatever namespace it lives in. Cost is
//! proportional to the steered sockets, not to all.

use core::{ffi::c_void, mem::zeroed};

use aya_ebpf::helpers::generated::{
    bpf_jiffies64, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_seq_write, bpf_skc_to_tcp_sock,
};
use sluice_common::{
    records::{CensusRow, Connection, Member, Phase},
    tables::{MAPPED, TCP},
};

use crate::maps::{TALLY, TALLY_BEFORE, add, offset};

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Context {
    /// First member: the seq_file to write to.
    meta: *const *mut c_void,
    map: *mut c_void,
    socket: *mut c_void,
    value: *const Connection,
}

const AF_INET: u16 = 2;

/// Runs once for every socket, and a last time with none: that row carries the clocks only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn census(ctx: *mut Context) -> i32 {
    // SAFETY: plain integers and arrays: all zero is a value.
    let mut row: CensusRow = unsafe { zeroed() };
    // SAFETY: helpers without arguments; the context lives as long as the program runs.
    let (seq, socket, value) = unsafe {
        row.clock = bpf_ktime_get_ns();
        row.now = bpf_jiffies64() as u32;
        (*(*ctx).meta, (*ctx).socket, (*ctx).value)
    };
    if !socket.is_null() && !value.is_null() {
        // SAFETY: the iterator holds the socket and its storage while the program runs.
        row.connection = unsafe { *value };
        describe(socket, &mut row);
    }
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
fn describe(socket: *mut c_void, row: &mut CensusRow) {
    let family: u16 = read(socket, Member::Family);
    if family == AF_INET {
        row.local = [0, 0, MAPPED, read(socket, Member::LocalV4)];
        row.remote = [0, 0, MAPPED, read(socket, Member::RemoteV4)];
    } else {
        row.local = read(socket, Member::LocalV6);
        row.remote = read(socket, Member::RemoteV6);
    }
    row.local_port = read::<u16>(socket, Member::LocalPort).to_be();
    row.remote_port = read(socket, Member::RemotePort);
    row.state = u32::from(read::<u8>(socket, Member::State));
    row.cookie = read(socket, Member::Cookie);
    let net: *mut c_void = read(socket, Member::Net);
    row.netns = read(net, Member::NetCookie);
    if row.connection.protocol != TCP {
        return;
    }
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(socket) }.cast();
    if tcp.is_null() {
        return;
    }
    row.last_sent = read(tcp, Member::LastSent);
    row.last_received = read(tcp, Member::LastReceived);
    let (written, acknowledged): (u32, u32) = (read(tcp, Member::WriteSeq), read(tcp, Member::SndUna));
    row.unacknowledged = written.wrapping_sub(acknowledged);
    let (received, copied): (u32, u32) = (read(tcp, Member::RcvNxt), read(tcp, Member::CopiedSeq));
    row.unread = received.wrapping_sub(copied);
    row.bytes_sent = read(tcp, Member::BytesSent);
    row.bytes_received = read(tcp, Member::BytesReceived);
}

/// A member of a kernel structure; zero when it cannot be read.
#[inline(always)]
fn read<T: Copy>(structure: *mut c_void, member: Member) -> T {
    // SAFETY: T is a plain integer, pointer or array of them; the helper checks the address.
    unsafe {
        let mut value: T = zeroed();
        let at = structure.cast::<u8>().wrapping_add(offset(member));
        bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, at.cast());
        value
    }
}
