//! Every table of the data plane, once: its name, what it holds, how it is sized, and whether it outlives the agent.
//!
//! The programs' statics and the agent's loading, adoption, checks and mappings all follow from these rows: a new table is a
//! new row here, and a table that is not here exists on neither side.

use core::marker::PhantomData;

use crate::{
    frontends::{BUCKETS_EACH, buckets},
    tables::SLOTS_PER_ENTRY,
};

/// Calls the macro `$then` with a row for every table: `Keep NAME: TableKind<key => value>[EntryCount];`.
#[macro_export]
macro_rules! for_each_table {
    ($then:ident) => {
        $then! {
            /// Version of the layouts and identity of the agent's store.
            Pinned META: Array<u32 => $crate::tables::Meta>[Fixed(1)];
            /// By node id.
            Pinned NODES: Array<u32 => $crate::tables::NodeEntry>[Nodes];
            /// By backend id.
            Pinned BACKENDS: Array<u32 => $crate::tables::BackendEntry>[Backends];
            /// Backend ids, in the tables of services.
            Pinned SLOTS: Array<u32 => [u32; $crate::tables::SLOTS_PER_ENTRY as usize]>[Slots];
            /// By service id.
            Pinned SERVICES: Array<u32 => $crate::tables::ServiceEntry>[Services];
            /// By backend id.
            Pinned COUNTERS: Array<u32 => $crate::tables::Counters>[Backends];
            /// By backend id.
            Pinned STREAKS: Array<u32 => $crate::streak::FailureStreak>[Backends];
            /// By `verdict::index`: how often each program ended how, on each CPU. Not shared between
            /// CPUs, because every call of every process counts here.
            Pinned VERDICTS: PerCpuArray<u32 => u64>[Fixed($crate::verdict::VERDICTS)];
            /// Datagram flows of unconnected sockets. The only table that evicts: a socket may speak with any number of
            /// peers, so its flows cannot live in the socket; one that is evicted while in use is picked anew.
            Pinned FLOWS: LruHash<$crate::flows::FlowKey => $crate::flows::Flow>[Fixed(65536)];
            /// The records of steered connections, each in its socket.
            Pinned CONNECTIONS: SocketStorage<i32 => $crate::records::ConnectionRecord>[Sockets];
            /// By `frontends::filter_bit`, 64 bits an entry.
            Pinned FILTER: Array<u32 => u64>[Fixed($crate::frontends::FILTER_ENTRIES)];
            /// By hash of the frontend.
            Pinned FRONTENDS: Array<u32 => $crate::frontends::Bucket>[Frontends];

            /// `streak::Signal`s. What was said before an agent started is in STREAKS.
            Own SIGNALS: Ring<() => ()>[Fixed($crate::streak::SIGNALS_BYTES)];
            /// Signals that found no room.
            Own SIGNALS_LOST: Array<u32 => u64>[Fixed(1)];
            /// By backend id, while turn times are measured.
            Own TURNS: Array<u32 => $crate::streak::Turns>[Backends];
            /// What a tally found for each backend: connections on their way in the low half, established ones in the
            /// high half. Cleared before every tally.
            Own TALLY: Array<u32 => u64>[Backends];
            /// CLOCK_MONOTONIC ns: a tally counts what is older.
            Own TALLY_BEFORE: Array<u32 => u64>[Fixed(1)];

            // The tables of a drain are filled for as long as it lasts.
            /// By backend id: whose connections are counted, and when they may be closed.
            Own DRAINING: Hash<u32 => $crate::drain::Draining>[Backends];
            /// By backend id: what one pass found.
            Own REMAINS: Hash<u32 => $crate::drain::Remains>[Backends];
            /// By the address of a backend: what one pass found on the accepting side.
            Own INBOUND: Hash<$crate::tables::Endpoint => $crate::drain::Inbound>[Backends];
            /// By the cookie of a network namespace: where closable sockets are.
            Own NAMESPACES: Hash<u64 => $crate::drain::NamespaceEntry>[Fixed(65536)];
            /// Local ends of steered sockets with a peer that INBOUND has, while some of what was accepted there may be
            /// closed.
            Own CALLERS: Hash<$crate::tables::Endpoint => u32>[Fixed(65536)];
            /// By the cookie of a socket: what came of ending its connection at the last look, see `ending`.
            Own ENDED: Hash<u64 => u32>[Fixed(65536)];

            /// `decision::DecisionRecord`s that fit DECISION_FILTER.
            Observed DECISIONS: Ring<() => ()>[Fixed($crate::decision::DECISIONS_BYTES)];
            /// Decisions that found no room.
            Observed DECISIONS_LOST: Array<u32 => u64>[Fixed(1)];
            /// Written by the agent: what those who watch ask for together.
            Observed DECISION_FILTER: Array<u32 => $crate::decision::DecisionFilter>[Fixed(1)];
        }
    };
}

macro_rules! describe {
    ($($(#[$doc:meta])* $keep:ident $name:ident: $kind:ident<$key:ty => $value:ty>[$($entries:tt)*];)*) => {
        $(
            $(#[$doc])*
            pub const $name: TableOf<$key, $value> =
                TableOf::new(stringify!($name), TableKind::$kind, EntryCount::$($entries)*, Keep::$keep);
        )*

        /// Every table.
        pub const ALL: &[Spec] = &[$($name.spec),*];
    };
}
for_each_table!(describe);

/// A table with the types of its keys and values.
#[derive(Debug)]
pub struct TableOf<K, V> {
    pub spec: Spec,
    types: PhantomData<fn() -> (K, V)>,
}

/// What both sides have to agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spec {
    /// Name in the eBPF object and of the pin.
    pub name: &'static str,
    pub kind: TableKind,
    /// Bytes of a key and of a value.
    pub key: u32,
    pub value: u32,
    pub entries: EntryCount,
    pub keep: Keep,
}

/// How the kernel keeps a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Mapped into the agent: a change is a store, not a system call.
    Array,
    /// An array for each CPU.
    PerCpuArray,
    /// Memory for an entry is taken when it comes.
    Hash,
    /// Drops what was used least recently when it is full.
    LruHash,
    Ring,
    /// A value for each socket, which lives as long as its socket.
    SocketStorage,
}

/// How many entries a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryCount {
    /// As many on every host; of a ring, bytes.
    Fixed(u32),
    Services,
    Backends,
    Nodes,
    /// Buckets, [`BUCKETS_EACH`] for a frontend.
    Frontends,
    /// [`SLOTS_PER_ENTRY`] slots in one.
    Slots,
    /// The kernel keeps no number.
    Sockets,
}

/// What becomes of a table when its agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It goes on under its pin, and the next agent takes it over.
    Pinned,
    /// It is the agent's own and goes with it.
    Own,
    /// It belongs to the observed programs: made when the first watcher comes, gone with the last. A pin would let it
    /// outlive those whom it is for.
    Observed,
}

/// Entries of the tables that an operator sizes. They cannot change while the tables are pinned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    pub services: u32,
    pub backends: u32,
    pub nodes: u32,
    pub frontends: u32,
    pub slots: u32,
}

impl<K, V> TableOf<K, V> {
    const fn new(name: &'static str, kind: TableKind, entries: EntryCount, keep: Keep) -> Self {
        let (key, value) = (size_of::<K>() as u32, size_of::<V>() as u32);
        Self { spec: Spec { name, kind, key, value, entries, keep }, types: PhantomData }
    }
}

impl TableKind {
    /// `enum bpf_map_type` of linux/bpf.h.
    pub const fn number(self) -> u32 {
        match self {
            Self::Hash => 1,
            Self::Array => 2,
            Self::PerCpuArray => 6,
            Self::LruHash => 9,
            Self::SocketStorage => 24,
            Self::Ring => 27,
        }
    }

    /// The flags that it is made with.
    pub const fn flags(self) -> u32 {
        const NO_PREALLOC: u32 = 1;
        const MMAPABLE: u32 = 1 << 10;
        match self {
            Self::Array => MMAPABLE,
            Self::Hash | Self::SocketStorage => NO_PREALLOC,
            Self::PerCpuArray | Self::LruHash | Self::Ring => 0,
        }
    }
}

impl EntryCount {
    /// Entries that the kernel is asked for.
    pub const fn of(self, sizes: &Sizes) -> u32 {
        match self {
            Self::Fixed(entries) => entries,
            Self::Services => sizes.services,
            Self::Backends => sizes.backends,
            Self::Nodes => sizes.nodes,
            Self::Frontends => buckets(sizes.frontends),
            Self::Slots => sizes.slots.div_ceil(SLOTS_PER_ENTRY),
            Self::Sockets => 0,
        }
    }

    /// So many entries in the unit of [`EntryCount::flag`].
    pub const fn in_units_of_flag(self, entries: u32) -> u32 {
        match self {
            Self::Frontends => entries / BUCKETS_EACH,
            Self::Slots => entries * SLOTS_PER_ENTRY,
            Self::Fixed(_) | Self::Services | Self::Backends | Self::Nodes | Self::Sockets => entries,
        }
    }

    /// The agent's flag that sets the number; `None`: it is the same for every agent of this version.
    pub const fn flag(self) -> Option<&'static str> {
        match self {
            Self::Services => Some("--max-services"),
            Self::Backends => Some("--max-backends"),
            Self::Nodes => Some("--max-nodes"),
            Self::Frontends => Some("--max-frontends"),
            Self::Slots => Some("--max-slots"),
            Self::Fixed(_) | Self::Sockets => None,
        }
    }
}

impl Sizes {
    /// Those of an object that is loaded by hand; an agent sets its own before it loads.
    pub const SMALL: Self = Self { services: 1024, backends: 1024, nodes: 1024, frontends: 512, slots: 65536 };
}
