//! Which side spoke last, remembered before a keep-alive probe blurs it.
//!
//! A probe makes the peer acknowledge once more. After that a socket does not show any more whether the peer's last word had
//! data, and where request and answer have the same jiffy nothing else tells. `tcp_write_wakeup` is the kernel's function
//! that sends a probe: it runs for connections that were quiet for long, and for none else.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use sluice_common::{records::Phase, tables::TCP};

use crate::{socket, storage::connection};

/// Arguments of the function: `struct sock`, and what is of no interest here.
#[repr(C)]
pub struct ProbedSocket {
    socket: *mut c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "fentry/tcp_write_wakeup")]
pub fn keepalive(ctx: *mut ProbedSocket) -> i32 {
    // SAFETY: the context lives as long as the program runs.
    let found = unsafe { (*ctx).socket };
    let stored = connection(found);
    if stored.is_null() {
        return 0;
    }
    // SAFETY: storage of the socket that is to be probed, whose lock is held.
    let record = unsafe { &mut *stored };
    if record.phase != Phase::Established as u8 || record.protocol != TCP {
        return 0;
    }
    // SAFETY: the helper checks the socket.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
    if tcp.is_null() {
        return 0;
    }
    let activity = socket::activity(tcp).without_fin(socket::state(found));
    if activity.shows_answer() {
        record.seen = activity.written;
    }
    0
}
