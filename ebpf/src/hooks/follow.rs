//! Entry points of the programs that follow connections and give applications the addresses that they asked for.

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use sluice_common::verdict::Program;

use super::{
    call::{Call, V4, V6},
    datagram, peer, run, sockops,
};
use crate::counters::count;

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
    // Returning 0 would discard the replies of other sock_ops programs up to the root.
    1
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    if let Some(verdict) = sockops::sock_release(&ctx) {
        count(Program::SockRelease, verdict);
    }
    1
}
