//! The programs of a cgroup: an entry point for each hook, and what the kernel is told for each verdict. Those that choose
//! a backend are here, those that follow and translate in `follow`.

mod call;
mod connect;
mod datagram;
#[cfg(not(feature = "observe"))]
mod follow;
mod opening;
mod peer;
pub mod sockops;
mod streaks;

use aya_ebpf::{helpers::generated::bpf_set_retval, macros::cgroup_sock_addr, programs::SockAddrContext};
use sluice_common::verdict::{Program, Verdict};

use crate::counters::count;
#[cfg(not(feature = "observe"))]
use crate::lookup::Unobserved;
#[cfg(feature = "observe")]
use crate::observe::Recorder;
use call::{Call, Family, V4, V6};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    decide(Call::<V4>::new(ctx, Program::Connect4), connect::connect)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    decide(Call::<V6>::new(ctx, Program::Connect6), connect::connect)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    decide(Call::<V4>::new(ctx, Program::Sendmsg4), datagram::sendmsg)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    decide(Call::<V6>::new(ctx, Program::Sendmsg6), datagram::sendmsg)
}

/// Runs a program that chooses a backend with [`run`].
#[cfg(not(feature = "observe"))]
#[inline(always)]
fn decide<F: Family>(call: Call<F>, program: impl FnOnce(&Call<F>, &mut Unobserved) -> Verdict) -> i32 {
    run(call, |call| program(call, &mut Unobserved))
}

/// Runs a program that chooses a backend with [`run`], and records the decision for watchers.
#[cfg(feature = "observe")]
#[inline(always)]
fn decide<F: Family>(call: Call<F>, program: impl FnOnce(&Call<F>, &mut Recorder) -> Verdict) -> i32 {
    run(call, |call| {
        let mut recorder = Recorder::new(call.destination());
        let verdict = program(call, &mut recorder);
        recorder.tell(call.program(), verdict);
        verdict
    })
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
