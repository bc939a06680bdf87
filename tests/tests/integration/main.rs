//! Black-box tests: real sockets, real namespaces, the real agent. They need root: `cargo xtask test --host` or `--vm`.
//! A test whose name starts with `host_` needs programs that virtual machines do not have and is left out there. One that
//! starts with `usr_` needs the programs of the host too, and runs wherever a machine can see them in its /usr. Those of
//! the module `outside` say the same on every kernel and run once: on the host if they can.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forge;
mod stage;

mod addresses;
mod agree;
mod alerts;
mod datagrams;
mod drain;
mod exact;
mod gauge;
mod hash;
mod matrix;
mod outlier;
mod outside;
mod programs;
mod readiness;
mod restart;
mod sockets;
mod tracking;
mod turn;
mod uninstall;
mod warmup;
mod zero;
mod zero_load;
