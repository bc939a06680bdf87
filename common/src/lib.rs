//! Everything that crosses the boundary between the eBPF programs and the agent, and the pure logic that both
//! sides run: the tables ([`tables`]), the service of an address ([`frontends`]), the choice of a backend ([`pick`]), the drain of one ([`drain`], [`flight`]),
//! what is noticed of one ([`watch`]) and the names of every way out of a program ([`verdict`]). Nothing here allocates, panics or does I/O.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod drain;
pub mod flight;
pub mod frontends;
pub mod pick;
pub mod records;
pub mod tables;
pub mod verdict;
pub mod watch;

/// Version of every layout in this crate. A change of any `repr(C)` type, of the packing of [`tables::Table`] or of
/// the meaning of a table raises it; an agent refuses pinned tables of another version.
pub const ABI_VERSION: u32 = 2;
