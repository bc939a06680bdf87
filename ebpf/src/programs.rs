//! The entry points, one a hook.

use aya_ebpf::{
    macros::{cgroup_sock, cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockContext, SockOpsContext},
};
use sluice_common::verdict::Program;

use crate::{
    address::{Call, V4, V6},
    connect::connect,
    datagram::{recvmsg, sendmsg},
    peer::getpeername,
    track,
};

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect(&Call::<V4>::new(ctx, Program::Connect4))
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect(&Call::<V6>::new(ctx, Program::Connect6))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg(&Call::<V4>::new(ctx, Program::Sendmsg4))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg(&Call::<V6>::new(ctx, Program::Sendmsg6))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    recvmsg(&Call::<V4>::new(ctx, Program::Recvmsg4))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    recvmsg(&Call::<V6>::new(ctx, Program::Recvmsg6))
}

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    getpeername(&Call::<V4>::new(ctx, Program::Getpeername4))
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    getpeername(&Call::<V6>::new(ctx, Program::Getpeername6))
}

#[sock_ops]
pub fn sock_ops(ctx: SockOpsContext) -> u32 {
    track::sock_ops(&ctx);
    // 0 would be a veto: it takes the answers of every other sock_ops program on the way to the root away.
    1
}

#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    track::sock_release(&ctx);
    1
}
