//! The steered sockets of one network namespace, as `iter/tcp` and `iter/udp` come by them: the socket is locked.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use sluice_common::records::Connection;

use crate::maps::connection;

/// `struct bpf_iter__tcp` and `struct bpf_iter__udp`, as far as they are alike.
#[repr(C)]
pub struct Context {
    /// First member: the seq_file to write to.
    meta: *const *mut c_void,
    pub socket: *mut c_void,
}

#[inline(always)]
pub fn seq(ctx: *mut Context) -> *mut c_void {
    // SAFETY: the context lives as long as the program runs.
    unsafe { *(*ctx).meta }
}

/// The socket and its record; `None` for those that have none, and at the end of a walk.
#[inline(always)]
pub fn tcp(ctx: *mut Context) -> Option<(*mut c_void, &'static Connection)> {
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

/// As [`tcp`].
#[inline(always)]
pub fn udp(ctx: *mut Context) -> Option<(*mut c_void, &'static Connection)> {
    // SAFETY: the context lives as long as the program runs.
    let found = unsafe { (*ctx).socket };
    if found.is_null() {
        return None;
    }
    let stored = connection(found);
    // SAFETY: storage of a socket that the iterator holds, and locks.
    (!stored.is_null()).then(|| (found, unsafe { &*stored }))
}
