//! The eBPF programs. [`hooks`] are those of a cgroup: each translates its context, and [`lookup`] decides. [`iter`] walks the
//! steered sockets when the agent asks, [`turn`] measures turn times, and [`keepalive`] remembers what probes blur.
//!
//! With the feature `observe` this becomes another object: the four programs that choose a backend, made from the same
//! source, with [`observe`] in them. The agent puts them in the place of the others for as long as somebody watches.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// What follows, translates and walks is in the other object.
#![cfg_attr(feature = "observe", allow(dead_code))]
// Stable Rust has no fetch-and-add on a target without compare-and-swap.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]

#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(all(target_arch = "bpf", not(feature = "observe")))]
mod iter;
#[cfg(all(target_arch = "bpf", not(feature = "observe")))]
mod keepalive;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(all(target_arch = "bpf", feature = "observe"))]
mod observe;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod storage;
#[cfg(all(target_arch = "bpf", not(feature = "observe")))]
mod turn;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// Both licences of the repository's user space, plus the GPL that the kernel asks of programs that call its helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
