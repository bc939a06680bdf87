//! Black-box tests: real sockets, real namespaces, the real agent. They need root: `cargo xtask test --host` or `--vm`.
//! A test whose name starts with `host_` needs programs that virtual machines do not have and is left out there. One that
//! starts with `usr_` needs the programs of the host too, and runs wherever a machine can see them in its /usr.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forge;
mod harness;
mod stage;

mod addresses;
mod agree;
mod api;
mod bad_input;
mod cli;
mod datagrams;
mod disk;
mod drain;
mod exact;
mod files;
mod gauge;
mod groups;
mod hash;
mod matrix;
mod owners;
mod programs;
mod restart;
mod sockets;
mod startup;
mod tracking;
mod zero;
mod zero_load;
