//! Turn time: from the last byte of a request to the first byte of what comes back.
//!
//! `tcp_probe` is the kernel's tracepoint for every segment that an established connection receives: this program is
//! attached only while some service asks for it. An answer is the first segment with data that acknowledges all that
//! was sent, once for each time that something was sent: of pipelined requests the first answer counts, of a streamed
//! answer its first segment, and what the backend sends unasked does not.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_skc_to_tcp_sock};
use sluice_common::{
    records::{KernelMember, Phase},
    streak::MEASURED,
    tables::{CONNECT_BUCKETS, TCP},
};

use crate::{
    counters::{add, add_one, bucket},
    socket::{read, read_at},
    storage::{STREAKS, TURNS, connection, offset},
};

/// Arguments of the tracepoint: `struct sock` and `struct sk_buff`.
#[repr(C)]
pub struct Context {
    socket: *mut c_void,
    segment: *mut c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "tp_btf/tcp_probe")]
pub fn turn(ctx: *mut Context) -> i32 {
    // SAFETY: the context lives as long as the program runs.
    let (found, segment) = unsafe { ((*ctx).socket, (*ctx).segment) };
    if length(segment) == 0 {
        return 0;
    }
    let stored = connection(found);
    if stored.is_null() {
        return 0;
    }
    // SAFETY: storage of the socket that the segment is for, whose lock is held.
    let record = unsafe { &mut *stored };
    if record.phase != Phase::Established as u8 || record.protocol != TCP {
        return 0;
    }
    if STREAKS.get(record.backend_id).is_none_or(|streak| streak.flags & MEASURED == 0) {
        return 0;
    }
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
    if tcp.is_null() {
        return 0;
    }
    let sent: u32 = read(tcp, KernelMember::SndNxt);
    if sent == record.seen || control::<u32>(segment, KernelMember::SegmentAck) != sent {
        return 0;
    }
    record.seen = sent;
    let Some(turns) = TURNS.get_ptr_mut(record.backend_id) else {
        return 0;
    };
    // Every segment sent sets this: the last one was the end of the request.
    let last_sent: u64 = read(tcp, KernelMember::SentAt);
    // SAFETY: helper without arguments. Pacing may set the time of departure ahead.
    let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(last_sent) / 1000;
    let bucket = bucket(took >> 6, CONNECT_BUCKETS, 1);
    // SAFETY: a live map value; `bucket` is below the length of the array.
    unsafe {
        add_one((&raw mut (*turns).buckets).cast::<u32>().add(bucket));
        add(&raw mut (*turns).sum, took);
        add(&raw mut (*turns).count, 1);
    }
    0
}

/// Bytes of data in a segment.
#[inline(always)]
fn length(segment: *mut c_void) -> u32 {
    const FIN: u8 = 1;
    let (from, to): (u32, u32) =
        (control(segment, KernelMember::SegmentStart), control(segment, KernelMember::SegmentEnd));
    // A FIN takes a number.
    let fin = u32::from(control::<u8>(segment, KernelMember::SegmentFlags) & FIN);
    to.wrapping_sub(from).wrapping_sub(fin)
}

/// A member of `struct tcp_skb_cb`, which TCP keeps in the segment's control block.
#[inline(always)]
fn control<T: Copy>(segment: *mut c_void, member: KernelMember) -> T {
    read_at(segment, offset(KernelMember::SegmentControl) + offset(member))
}
