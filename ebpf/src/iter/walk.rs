//! The ways to the steered sockets.
//!
//! `iter/bpf_sk_storage_map` finds those of the whole host, whatever namespace they live in, at a cost that is
//! proportional to the steered sockets, not to all. `iter/tcp` and `iter/udp` find those of one network namespace, each
//! locked while the program looks at it.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use sluice_common::records::ConnectionRecord;

use crate::storage::connection;

/// `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub struct Records {
    meta: *const *mut c_void,
    map: *mut c_void,
    socket: *mut c_void,
    value: *const ConnectionRecord,
}

/// `struct bpf_iter__tcp` and `struct bpf_iter__udp`, as far as they are alike.
#[repr(C)]
pub struct Sockets {
    meta: *const *mut c_void,
    pub socket: *mut c_void,
}

/// The seq_file that a walk writes to: the first member of every context.
#[inline(always)]
pub fn seq<C>(ctx: *mut C) -> *mut c_void {
    // SAFETY: the context lives as long as the program runs.
    unsafe { **ctx.cast::<*const *mut c_void>() }
}

/// The socket and its record; `None` for those that have none, and at the end of a walk.
#[inline(always)]
pub fn records(ctx: *mut Records) -> Option<(*mut c_void, &'static ConnectionRecord)> {
    // SAFETY: the context lives as long as the program runs.
    let (found, value) = unsafe { ((*ctx).socket, (*ctx).value) };
    // SAFETY: the iterator holds the socket and its storage while the program runs.
    (!found.is_null() && !value.is_null()).then(|| (found, unsafe { &*value }))
}

/// As [`records`].
#[inline(always)]
pub fn tcp(ctx: *mut Sockets) -> Option<(*mut c_void, &'static ConnectionRecord)> {
    // SAFETY: the context lives as long as the program runs.
    let found = unsafe { (*ctx).socket };
    if found.is_null() {
        return None;
    }
    // SAFETY: the helper checks the socket; null for requests and TIME_WAIT.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
    if tcp.is_null() {
        return None;
    }
    let stored = connection(tcp);
    // SAFETY: storage of a socket that the iterator holds, and locks.
    (!stored.is_null()).then(|| (found, unsafe { &*stored }))
}

/// As [`records`].
#[inline(always)]
pub fn udp(ctx: *mut Sockets) -> Option<(*mut c_void, &'static ConnectionRecord)> {
    // SAFETY: the context lives as long as the program runs.
    let found = unsafe { (*ctx).socket };
    if found.is_null() {
        return None;
    }
    let stored = connection(found);
    // SAFETY: storage of a socket that the iterator holds, and locks.
    (!stored.is_null()).then(|| (found, unsafe { &*stored }))
}
