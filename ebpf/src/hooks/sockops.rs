//! From SYN to close: what becomes of a steered connection.
//!
//! A record moves Picked -> Opened -> Established -> Ended, and every move is counted once. An end that no callback
//! showed (another sock_ops program may clear the callback flags) is settled when the socket is used again or
//! released; what even that misses, the agent's census finds.

use core::{ffi::c_void, ptr};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_RETRANS_CB, BPF_SOCK_OPS_RETRANS_CB_FLAG, BPF_SOCK_OPS_RTT_CB,
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock, bpf_sock_ops,
    },
    helpers::generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock},
    programs::{SockContext, SockOpsContext},
};
use sluice_common::{
    records::{ConnectionRecord, KernelMember, LEAST_USE, Phase},
    tables::{CONNECT_BUCKETS, ConnectionFailure, Counters, DURATION_BUCKETS, MAPPED, TCP, UDP, is_mapped},
    verdict::{Program, Verdict},
};

use super::{datagram, opening, streaks};
use crate::{
    counters::{add, add_one, bucket, count, counters},
    socket,
    storage::connection,
};

const SOCK_STREAM: u32 = 1;
const TCP_CLOSE: u32 = 7;
const ECONNRESET: i32 = 104;
const ETIMEDOUT: i32 = 110;
const ECONNREFUSED: i32 = 111;
const EHOSTUNREACH: i32 = 113;
const ENETUNREACH: i32 = 101;
const EPIPE: i32 = 32;

/// Runs for every TCP socket in the cgroup. Other callbacks than these five, and sockets without a record, leave uncounted.
#[inline(always)]
pub fn sock_ops(ctx: &SockOpsContext) -> Option<Verdict> {
    let op = ctx.op();
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB
        | BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        | BPF_SOCK_OPS_RETRANS_CB
        | BPF_SOCK_OPS_RTT_CB => {}
        BPF_SOCK_OPS_STATE_CB if ctx.arg(1) == TCP_CLOSE => {}
        _ => return None,
    }
    // SAFETY: the context lives as long as the program runs.
    let ops = unsafe { &*ctx.ops };
    // SAFETY: as above; null where there is no full socket.
    let socket = unsafe { ops.__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    let stored = connection(socket);
    if stored.is_null() {
        return None;
    }
    // SAFETY: storage of the socket that the callback is about; callbacks of one socket are serialized by its lock.
    let connection = unsafe { &mut *stored };
    if op == BPF_SOCK_OPS_RTT_CB {
        opening::acknowledged(ctx, ops, socket, connection);
        return None;
    }
    let counters = counters(connection.backend_id)?;
    match op {
        BPF_SOCK_OPS_TCP_CONNECT_CB => opened(ctx, ops, connection, counters),
        // The socket has a direct connection now, and still the callback flags of its steered one.
        _ if !connection.is_open() => None,
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(ctx, ops, connection, counters),
        BPF_SOCK_OPS_RETRANS_CB => {
            // SAFETY: a live map value.
            add(unsafe { &raw mut (*counters).retransmits }, u64::from(ctx.arg(1)));
            if connection.phase == Phase::Opened as u8 {
                streaks::unanswered(connection, counters);
            }
            Some(Verdict::Retransmitted)
        }
        _ => {
            sample_rtt(ops, counters);
            let error = error_of(socket);
            if connection.phase == Phase::Established as u8 {
                streaks::closed(connection.backend_id, is_early_reset(ops, error));
            }
            end(connection, counters, error)
        }
    }
}

/// Counts the end of a connected datagram socket. A closed TCP socket whose record is still open ended unseen.
#[inline(always)]
pub fn sock_release(ctx: &SockContext) -> Option<Verdict> {
    // SAFETY: the context is the socket.
    let (kind, state) =
        unsafe { (ptr::read_volatile(&raw const (*ctx.sock).type_), ptr::read_volatile(&raw const (*ctx.sock).state)) };
    // Saves most sockets the look-up of their storage.
    if kind == SOCK_STREAM && state != TCP_CLOSE {
        return Some(Verdict::NotOurs);
    }
    let stored = connection(ctx.sock);
    if stored.is_null() {
        return Some(Verdict::NotOurs);
    }
    // SAFETY: storage of the socket being released.
    let record = unsafe { &mut *stored };
    if record.protocol == TCP {
        settle(Program::SockRelease, stored);
        return None;
    }
    if record.protocol == 0 {
        datagram::forget(ctx, record);
        return None;
    }
    if !record.is_open() {
        return None;
    }
    end(record, counters(record.backend_id)?, 0)
}

/// Counts a connection whose end no callback reported, under the program that discovered it. One that never sent its SYN,
/// because the kernel found no route or another program refused the call, counts as unreachable but enters no streak: the
/// backend never heard of it.
#[inline(always)]
pub fn settle(program: Program, stored: *mut ConnectionRecord) {
    // SAFETY: the callers pass storage of a socket that they hold.
    let record = unsafe { &mut *stored };
    if record.protocol == 0 || record.phase == Phase::Ended as u8 || record.phase == Phase::New as u8 {
        return;
    }
    let Some(counters) = counters(record.backend_id) else {
        return;
    };
    if record.phase == Phase::Picked as u8 {
        // SAFETY: a live map value.
        add(unsafe { &raw mut (*counters).opened }, 1);
        record.phase = Phase::Ended as u8;
        fail(counters, ConnectionFailure::Unreachable);
        count(program, Verdict::Failed);
    } else {
        if let Some(verdict) = end(record, counters, 0) {
            count(program, Verdict::Recovered);
            count(program, verdict);
        }
    }
}

/// Counts a connected datagram socket as established when the programs first see it used. send() and recv() meet none
/// of them: such a socket is counted when it ends.
#[inline(always)]
pub fn used(record: &mut ConnectionRecord) {
    if is_unused(record)
        && let Some(counters) = counters(record.backend_id)
    {
        use_datagrams(record, counters);
    }
}

#[inline(always)]
fn is_unused(record: &ConnectionRecord) -> bool {
    record.protocol == UDP && record.phase == Phase::Opened as u8
}

#[inline(always)]
fn use_datagrams(record: &mut ConnectionRecord, counters: *mut Counters) {
    record.phase = Phase::Established as u8;
    // SAFETY: a live map value.
    add(unsafe { &raw mut (*counters).established }, 1);
}

#[inline(always)]
fn opened(
    ctx: &SockOpsContext,
    ops: &bpf_sock_ops,
    connection: &mut ConnectionRecord,
    counters: *mut Counters,
) -> Option<Verdict> {
    // A record of an earlier connect() that failed before its SYN: this SYN goes elsewhere.
    if connection.phase != Phase::Picked as u8 || !goes_to_backend(ops, connection) {
        return Some(Verdict::Stale);
    }
    connection.phase = Phase::Opened as u8;
    connection.seen = streaks::answers(counters);
    // SAFETY: a live map value.
    add(unsafe { &raw mut (*counters).opened }, 1);
    let flags = ops.bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG | BPF_SOCK_OPS_RETRANS_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
    Some(Verdict::Opened)
}

#[inline(always)]
fn goes_to_backend(ops: &bpf_sock_ops, connection: &ConnectionRecord) -> bool {
    // The context keeps the port in the upper half. It has the IPv4 address of mapped ones too.
    let port = (ops.remote_port >> 16) as u16;
    if is_mapped(&connection.backend) {
        return connection.went_to(&[0, 0, MAPPED, ops.remote_ip4], port);
    }
    connection.went_to(&ops.remote_ip6, port)
}

#[inline(always)]
fn established(
    ctx: &SockOpsContext,
    ops: &bpf_sock_ops,
    connection: &mut ConnectionRecord,
    counters: *mut Counters,
) -> Option<Verdict> {
    if connection.phase != Phase::Opened as u8 {
        return None;
    }
    // SAFETY: helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let took = connect_time(ops, now.wrapping_sub(connection.since) / 1000);
    connection.phase = Phase::Established as u8;
    connection.since = now;
    connection.seen = ops.snd_nxt;
    let bucket = bucket(took >> 6, CONNECT_BUCKETS, 1);
    // SAFETY: a live map value; `bucket` is below the length of the array.
    unsafe {
        add(&raw mut (*counters).established, 1);
        add(&raw mut (*counters).connect_sum, took);
        add_one((&raw mut (*counters).connect_time).cast::<u32>().add(bucket));
    }
    sample_rtt(ops, counters);
    streaks::established(connection.backend_id);
    opening::listen(ctx, ops, connection);
    Some(Verdict::Established)
}

/// Microseconds from the SYN to its answer. The kernel measured them (times eight) if it sent one SYN; otherwise they are
/// counted from the pick, too long by up to a tick.
#[inline(always)]
fn connect_time(ops: &bpf_sock_ops, since_pick: u64) -> u64 {
    let handshake = u64::from(ops.srtt_us >> 3);
    if handshake != 0 && ops.total_retrans == 0 { handshake } else { since_pick }
}

#[inline(always)]
fn end(connection: &mut ConnectionRecord, counters: *mut Counters, error: i32) -> Option<Verdict> {
    if is_unused(connection) {
        // SAFETY: helper without arguments.
        let lasted = unsafe { bpf_ktime_get_ns() }.wrapping_sub(connection.since);
        if lasted < LEAST_USE {
            connection.phase = Phase::Ended as u8;
            // SAFETY: a live map value. Takes away the one of connect().
            add(unsafe { &raw mut (*counters).opened }, u64::MAX);
            return None;
        }
        use_datagrams(connection, counters);
    }
    let phase = connection.phase;
    connection.phase = Phase::Ended as u8;
    if phase == Phase::Opened as u8 {
        let reason = match error {
            ECONNREFUSED | ECONNRESET => ConnectionFailure::Refused,
            ETIMEDOUT => ConnectionFailure::TimedOut,
            EHOSTUNREACH | ENETUNREACH => ConnectionFailure::Unreachable,
            _ => ConnectionFailure::Abandoned,
        };
        fail(counters, reason);
        streaks::failed(connection, reason);
        Some(Verdict::Failed)
    } else if phase == Phase::Established as u8 {
        // SAFETY: helper without arguments.
        let lasted = unsafe { bpf_ktime_get_ns() }.wrapping_sub(connection.since) / 1_000_000;
        let bucket = bucket(lasted, DURATION_BUCKETS, 2);
        // SAFETY: a live map value, an index below its length.
        unsafe {
            add(&raw mut (*counters).closed, 1);
            if is_reset(error) {
                add(&raw mut (*counters).resets, 1);
            }
            add(&raw mut (*counters).duration_sum, lasted);
            add_one((&raw mut (*counters).duration).cast::<u32>().add(bucket));
        }
        Some(Verdict::Closed)
    } else {
        None
    }
}

/// Whether an established connection ended by a reset: EPIPE is one after the peer's FIN.
#[inline(always)]
fn is_reset(error: i32) -> bool {
    error == ECONNRESET || error == EPIPE
}

/// Counts a connection that was not established.
#[inline(always)]
fn fail(counters: *mut Counters, reason: ConnectionFailure) {
    // SAFETY: a live map value, an index below its length.
    add(unsafe { (&raw mut (*counters).failed).cast::<u64>().add(reason as usize) }, 1);
}

/// Whether a connection was reset before the first byte came back. The kernel counts a FIN as a byte received.
#[inline(always)]
fn is_early_reset(ops: &bpf_sock_ops, error: i32) -> bool {
    is_reset(error) && ops.bytes_received <= u64::from(error == EPIPE)
}

/// Why the kernel ended the connection; 0 when the application did.
#[inline(always)]
fn error_of(socket: *mut bpf_sock) -> i32 {
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(socket.cast()) }.cast();
    if tcp.is_null() { 0 } else { socket::read(tcp, KernelMember::SkErr) }
}

#[inline(always)]
fn sample_rtt(ops: &bpf_sock_ops, counters: *mut Counters) {
    // The kernel keeps it times eight.
    let rtt = ops.srtt_us >> 3;
    if rtt != 0 {
        // SAFETY: a live map value.
        unsafe {
            add(&raw mut (*counters).rtt_sum, u64::from(rtt));
            add(&raw mut (*counters).rtt_samples, 1);
        }
    }
}
