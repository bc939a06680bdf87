//! Who opens the conversation of a steered connection, learned in one callback: the kernel measures the round trip when the
//! caller's first data is acknowledged. A client of PostgreSQL that asks for encryption takes two.

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_SOCK_OPS_RTT_CB_FLAG, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops},
    helpers::generated::bpf_skc_to_tcp_sock,
    programs::SockOpsContext,
};
use sluice_common::{
    opening::{LISTENS, Opening, before_last_segment},
    records::{ConnectionRecord, KernelMember},
};

use crate::socket::read;

/// Asks for the callback, of a connection that is just established.
#[inline(always)]
pub fn listen(ctx: &SockOpsContext, ops: &bpf_sock_ops, record: &mut ConnectionRecord) {
    // The SYN counts as one. It had data with TCP Fast Open.
    if ops.bytes_acked > 1 {
        record.note_opening(Opening::Caller);
        return;
    }
    record.note_opening(Opening::Awaited);
    let flags = ops.bpf_sock_ops_cb_flags;
    if flags & BPF_SOCK_OPS_RTT_CB_FLAG == 0 {
        record.notes |= LISTENS;
        let _ = ctx.set_cb_flags((flags | BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
    }
}

/// Data of the caller was acknowledged, by a segment that the kernel is taking in. `socket` is not null.
#[inline(always)]
pub fn acknowledged(ctx: &SockOpsContext, ops: &bpf_sock_ops, socket: *mut bpf_sock, record: &mut ConnectionRecord) {
    let before = record.opening();
    if !record.is_open() || (before != Opening::Awaited as u8 && before != Opening::Short as u8) {
        return;
    }
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(socket.cast()) }.cast();
    if tcp.is_null() {
        return;
    }
    let last = read(tcp, KernelMember::SndWl1);
    let unasked = before_last_segment(ops.bytes_received, ops.rcv_nxt, last);
    let known = Opening::after(before, unasked, ops.bytes_acked.wrapping_sub(1));
    record.note_opening(known);
    // Others may share the flags of a socket: what was there before stays, and so does all once somebody has set them anew.
    let flags = ops.bpf_sock_ops_cb_flags;
    let is_ours = record.notes & LISTENS != 0 && flags & BPF_SOCK_OPS_STATE_CB_FLAG != 0;
    if is_ours && known as u8 != Opening::Short as u8 {
        let _ = ctx.set_cb_flags((flags & !BPF_SOCK_OPS_RTT_CB_FLAG) as i32);
    }
}
