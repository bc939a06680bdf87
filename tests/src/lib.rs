//! What the black-box tests stand on: namespaces, cgroups, clients inside them, servers that say their name, and the
//! agent itself. Everything is a guard that undoes itself when dropped, also when a test fails.
//!
//! A test usually starts with a [`World`]: one cgroup and one network namespace of its own.

// This crate is a test from end to end; a harness that cannot go on says so by a panic.
#![allow(clippy::expect_used)]

pub mod agent;
pub mod certificates;
pub mod cgroup;
pub mod client;
pub mod daemons;
pub mod document;
pub mod http;
pub mod interrupt;
pub mod matrix;
pub mod namespace;
pub mod pins;
pub mod program;
pub mod server;
pub mod system;
mod world;

pub use agent::Agent;
pub use cgroup::Cgroup;
pub use client::{Client, Connection, Datagrams, Load, Options, Report};
pub use document::Service;
pub use namespace::Namespace;
pub use nix::errno::Errno;
pub use program::Program;
pub use server::Server;
pub use world::World;
