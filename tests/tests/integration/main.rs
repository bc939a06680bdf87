//! Black-box tests: real sockets, real namespaces, the real agent. They need root: `cargo xtask test --host` or `--vm`.
//!
//! Where a test runs is in its name. Every test runs on the host. Virtual machines with older kernels run those that a
//! kernel can answer in its own way, which are beside the module [`outside`]: hooks and their addresses, replaced
//! programs, socket storage, states and timers of sockets, iterators and what stands in for them. Tests in [`outside`]
//! say the same on every kernel: a machine runs them with `--all`, or where the host cannot. A test whose name starts
//! with `host_` needs programs that machines do not have and never runs there; one that starts with `usr_` needs the
//! programs of the host too, and runs in machines that can see them in their /usr.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod forge;
mod stage;

mod addresses;
mod agree;
mod attachment;
mod datagrams;
mod drain;
mod exact;
mod flows;
mod gauge;
mod hash;
mod matrix;
mod monitor;
mod outlier;
mod outside;
mod programs;
mod readiness;
mod restart;
mod sockets;
mod tracking;
mod turn;
mod uninstall;
mod upgrade;
mod zero;
mod zero_load;
