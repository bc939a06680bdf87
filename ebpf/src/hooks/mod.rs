//! The programs of a cgroup: an entry point for each hook, and what the kernel is told for each verdict.

mod call;
mod connect;
mod datagram;
mod peer;
pub mod sockops;
mod streaks;

use aya_ebpf::{
    helpers::generated::bpf_set_retval,
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use sluice_common::verdict::{Program, Verdict};

use crate::{counters::count, lookup::Unobserved};
use call::{Call, Family, V4, V6};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    run(Call::<V4>::new(ctx, Program::Connect4), |call| connect::connect(call, &mut Unobserved))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    run(Call::<V6>::new(ctx, Program::Connect6), |call| connect::connect(call, &mut Unobserved))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    run(Call::<V4>::new(ctx, Program::Sendmsg4), |call| datagram::sendmsg(call, &mut Unobserved))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    run(Call::<V6>::new(ctx, Program::Sendmsg6), |call| datagram::sendmsg(call, &mut Unobserved))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    run(Call::<V4>::new(ctx, Program::Recvmsg4), datagram::recvmsg)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    run(Call::<V6>::new(ctx, Program::Recvmsg6), datagram::recvmsg)
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    run(Call::<V4>::new(ctx, Program::Getpeername4), peer::getpeername)
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    run(Call::<V6>::new(ctx, Program::Getpeername6), peer::getpeername)
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    if let Some(verdict) = sockops::sock_ops(&ctx) {
        count(Program::SockOps, verdict);
    }
    // 0 would be a veto: it takes the answers of every other sock_ops program on the way to the root away.
    1
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    if let Some(verdict) = sockops::sock_release(&ctx) {
        count(Program::SockRelease, verdict);
    }
    1
}

/// Runs a program on a socket call, counts how it ended, and tells the kernel.
#[inline(always)]
fn run<F: Family>(call: Call<F>, program: impl FnOnce(&Call<F>) -> Verdict) -> i32 {
    const ECONNREFUSED: i32 = 111;
    let verdict = program(&call);
    count(call.program(), verdict);
    match answer(verdict) {
        Answer::Proceed => 1,
        Answer::Refuse => {
            // SAFETY: a helper without pointers.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            0
        }
    }
}

/// What becomes of a socket call.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// It goes on, to the address that is in the context now.
    Proceed,
    /// It ends with ECONNREFUSED.
    Refuse,
}

/// The policy of socket calls.
#[inline(always)]
const fn answer(verdict: Verdict) -> Answer {
    match verdict {
        Verdict::Refused => Answer::Refuse,
        Verdict::NotOurs
        | Verdict::Steered
        | Verdict::SteeredUntracked
        | Verdict::Kept
        | Verdict::Marked
        | Verdict::Passed
        | Verdict::Broken
        | Verdict::Translated
        | Verdict::Stale
        | Verdict::Opened
        | Verdict::Established
        | Verdict::Failed
        | Verdict::Closed
        | Verdict::Retransmitted
        | Verdict::Recovered => Answer::Proceed,
    }
}
