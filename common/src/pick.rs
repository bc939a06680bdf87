//! The choice of a backend: one function, which the programs run at connect() and the agent runs on the same tables when
//! `explain` is asked about a caller of a service with `hash`.

use core::borrow::Borrow;

use crate::tables::{BackendEntry, TableWord};

/// Slots drawn anew when the first one is closed: keeps the weights of what is left while a table is stale.
pub const REDRAWS: u32 = 8;

/// Read access to the tables that a pick needs.
pub trait Tables {
    /// An entry of BACKENDS: by reference in the kernel, by value in the agent.
    type Entry: Borrow<BackendEntry>;
    /// Backend id in SLOTS.
    fn slot(&self, index: u32) -> Option<u32>;
    fn backend(&self, id: u32) -> Option<Self::Entry>;
    /// Why a node takes no new connections; 0 when it does.
    fn node_closed(&self, id: u32) -> u32;

    /// [`pick_open`], which the kernel side keeps out of the way of the common case.
    fn pick_open(&self, table: TableWord, draw: u64) -> Option<u32> {
        pick_open(self, table, draw)
    }

    /// The first open backend of a list. (The kernel side has its own loop, because its verifier wants one.)
    fn first_open(&self, list: BackendList) -> Option<u32> {
        (0..list.length).find_map(|i| list.open_at(self, i))
    }
}

/// The list of distinct backends that follows the slots of a table, begun somewhere inside.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct BackendList {
    /// Index in SLOTS of the first entry.
    pub base: u32,
    pub length: u32,
    /// Entry to begin with, below `length`.
    pub start: u32,
}

impl BackendList {
    /// The `i`-th backend from `start` on, around the end, if it is open.
    #[inline(always)]
    pub fn open_at<T: Tables + ?Sized>(&self, tables: &T, i: u32) -> Option<u32> {
        let mut at = self.start + i;
        if at >= self.length {
            at -= self.length;
        }
        let id = tables.slot(self.base + at)?;
        open(tables, id).map(|_| id)
    }
}

/// The backend with this id if it and its node are open.
#[inline(always)]
pub fn open<T: Tables + ?Sized>(tables: &T, id: u32) -> Option<T::Entry> {
    let entry = tables.backend(id)?;
    let backend = entry.borrow();
    if backend.closed == 0 && tables.node_closed(backend.node) == 0 { Some(entry) } else { None }
}

/// Chooses a backend from `table`.
///
/// `draw` is that of [`crate::sequence`] (spread, round robin), a random number (random) or the client's hash (hash). A slot whose
/// backend or node is closed is skipped, see [`pick_open`]. `None`: nothing is open, or the table is empty.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, table: TableWord, draw: u64) -> Option<(u32, T::Entry)> {
    let length = table.length();
    if length == 0 {
        return None;
    }
    let first = (draw % length as u64) as u32;
    let id = tables.slot(table.base() + first)?;
    if let Some(backend) = open(tables, id) {
        return Some((id, backend));
    }
    let id = tables.pick_open(table, draw)?;
    tables.backend(id).map(|backend| (id, backend))
}

/// The rest of [`pick`], once the first slot was found closed: up to [`REDRAWS`] other slots, which keeps the weights
/// of what is left and sends each client of `hash` to a place of its own, then the list of distinct backends, which
/// finds the last open one.
#[inline(always)]
pub fn pick_open<T: Tables + ?Sized>(tables: &T, table: TableWord, draw: u64) -> Option<u32> {
    let mut again = draw;
    for _ in 0..REDRAWS {
        again = mix(again.wrapping_add(1));
        let id = tables.slot(table.base() + scale(again, table.length()))?;
        if open(tables, id).is_some() {
            return Some(id);
        }
    }
    let length = table.distinct();
    if length == 0 {
        return None;
    }
    let start = scale(mix(again), length);
    tables.first_open(BackendList { base: table.base() + table.length(), length, start })
}

/// `0..length` from the high bits of a hash: multiply and shift, no division.
#[inline(always)]
pub const fn scale(hash: u64, length: u32) -> u32 {
    (((hash >> 32) * length as u64) >> 32) as u32
}

/// Finalizer of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// What tells callers apart for `balance: hash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Id of the cgroup (v2) of the calling process.
    pub cgroup: u64,
    /// Source address that the socket was bound to before connect(), zero when it was not.
    pub source: [u32; 4],
}

impl ClientIdentity {
    /// The `draw` of [`pick`] for `balance: hash`.
    #[inline(always)]
    pub fn draw(&self) -> u64 {
        let low = ((self.source[0] as u64) << 32) | self.source[1] as u64;
        let high = ((self.source[2] as u64) << 32) | self.source[3] as u64;
        mix(mix(mix(mix(self.netns.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ self.cgroup) ^ low) ^ high)
    }
}
