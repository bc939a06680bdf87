//! Everything that crosses the boundary between the eBPF programs and the agent, and the pure logic that both sides run.
//!
//! [`registry`] lists the tables, [`tables`] and [`records`] have what is in them. [`frontends`] finds the service of an
//! address, [`pick`] chooses its backend, and [`sequence`] whose turn it is; [`flows`] keeps datagrams with theirs;
//! [`streak`] holds failure streaks; [`drain`], [`flight`] and [`opening`] decide which connections a drain may close, and
//! [`ending`] tells how they end. [`verdict`] names the programs and the ways out of them; [`decision`] is the record sent to
//! watchers. Nothing here allocates, panics or does I/O.
#![cfg_attr(not(feature = "std"), no_std)]

pub mod decision;
pub mod drain;
pub mod ending;
pub mod flight;
pub mod flows;
pub mod frontends;
pub mod opening;
pub mod pick;
pub mod records;
pub mod registry;
pub mod sequence;
pub mod streak;
pub mod tables;
pub mod verdict;

/// Version of every layout in this crate. A change of any `repr(C)` type, of the packing of [`tables::TableWord`] or of
/// the meaning of a table raises it. An agent takes over pinned tables of this version and of [`FORMER_ABI_VERSION`].
pub const ABI_VERSION: u32 = 3;
/// The version from which an agent upgrades in place.
pub const FORMER_ABI_VERSION: u32 = 2;
