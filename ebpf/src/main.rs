//! The eBPF programs. [`hooks`] are those of a cgroup: each translates its context, and [`lookup`] decides. [`iter`] walks the
//! steered sockets when the agent asks, and [`turn`] measures turn times.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// Stable Rust has no fetch-and-add on a target without compare-and-swap.
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics), allow(internal_features))]

#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod iter;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod socket;
#[cfg(target_arch = "bpf")]
mod storage;
#[cfg(target_arch = "bpf")]
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
