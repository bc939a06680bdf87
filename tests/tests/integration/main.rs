//! Black-box tests: real sockets, real namespaces, the real agent. They need root: `cargo xtask test --host` or `--vm`.
//! A test whose name starts with `host_` needs programs that virtual machines do not have and is left out there.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod harness;
mod stage;

mod addresses;
mod agree;
mod datagrams;
mod exact;
mod groups;
mod hash;
mod sockets;
