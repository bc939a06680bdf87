//! The maps, and the few ways in which programs touch them.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE},
    btf_maps::SkStorage,
    helpers::generated::{
        bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_loop, bpf_sk_storage_delete, bpf_sk_storage_get,
    },
    macros::{btf_map, map},
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use sluice_common::{
    drain::{Draining, Inbound, Place, Remains},
    frontends::{self, Bucket, Buckets, FILTER_ENTRIES, filter_bit},
    pick::{self, List, Tables},
    records::{Connection, Flow, FlowKey, MEMBERS, Member},
    tables::{Backend, Counters, Endpoint, Meta, Node, SLOTS_PER_ENTRY, Service, Table},
    verdict::{self, Program, VERDICTS as VERDICT_COUNT, Verdict},
    watch::{SIGNALS_BYTES, Turns, Watch},
};

// The numbers of entries are those of an object loaded by hand; the agent sets its own before loading.
#[map]
static FILTER: Array<u64> = Array::with_max_entries(FILTER_ENTRIES, BPF_F_MMAPABLE);
#[map]
static FRONTENDS: Array<Bucket> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static SERVICES: Array<Service> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static SLOTS: Array<[u32; SLOTS_PER_ENTRY as usize]> = Array::with_max_entries(32768, BPF_F_MMAPABLE);
#[map]
pub static BACKENDS: Array<Backend> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static NODES: Array<Node> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static COUNTERS: Array<Counters> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static WATCHES: Array<Watch> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
#[map]
pub static META: Array<Meta> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
pub static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(VERDICT_COUNT, 0);
/// Datagram flows of unconnected sockets. The only table that evicts: a socket may speak with any number of peers, so
/// its flows cannot live in the socket; one that is evicted while in use is picked anew.
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(65536, 0);
/// [`sluice_common::watch::Signal`]s. The agent's own: what was said before it started is in WATCHES.
#[map]
pub static SIGNALS: RingBuf = RingBuf::with_byte_size(SIGNALS_BYTES, 0);
/// Signals that found no room.
#[map]
pub static SIGNALS_LOST: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
/// The agent's own.
#[map]
pub static TURNS: Array<Turns> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// What a tally found for each backend: connections on their way in the low half, established ones in the high half.
/// The agent's own: cleared before every tally, not pinned.
#[map]
pub static TALLY: Array<u64> = Array::with_max_entries(1024, BPF_F_MMAPABLE);
/// CLOCK_MONOTONIC ns: a tally counts what is older.
#[map]
pub static TALLY_BEFORE: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
// The tables of a drain are filled for as long as it lasts.
#[map]
pub static DRAINING: HashMap<u32, Draining> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static REMAINS: HashMap<u32, Remains> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static INBOUND: HashMap<Endpoint, Inbound> = HashMap::with_max_entries(1024, BPF_F_NO_PREALLOC);
#[map]
pub static NAMESPACES: HashMap<u64, Place> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
/// Local ends of steered sockets with a peer that INBOUND has, while some of what was accepted there may be closed.
#[map]
pub static CALLERS: HashMap<Endpoint, u32> = HashMap::with_max_entries(65536, BPF_F_NO_PREALLOC);
#[btf_map]
pub static CONNECTIONS: SkStorage<Connection> = SkStorage::new();

/// Sockets with this SO_MARK pass untouched; 0 is no mark. Set by the agent before loading.
#[unsafe(no_mangle)]
static MARK: u32 = 0;
/// Number of buckets of FRONTENDS less one. Set by the agent before loading.
#[unsafe(no_mangle)]
static FRONTENDS_MASK: u32 = 1023;
/// Offsets of [`Member`]s in this kernel. Set by the agent before loading.
#[unsafe(no_mangle)]
static OFFSETS: [u32; MEMBERS] = [0; MEMBERS];

/// Whether the kernel has `bpf_sock_destroy`. Set by the agent before loading.
#[unsafe(no_mangle)]
static CAN_DESTROY: u32 = 0;
/// Jiffies a second. Set by the agent before loading.
#[unsafe(no_mangle)]
static HZ: u32 = 250;

#[inline(always)]
pub fn bypass_mark() -> u32 {
    // SAFETY: a static of this object; volatile, because the agent changes it after compilation.
    unsafe { ptr::read_volatile(&raw const MARK) }
}

#[inline(always)]
pub fn can_destroy() -> bool {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const CAN_DESTROY) != 0 }
}

#[inline(always)]
pub fn hz() -> u32 {
    // SAFETY: as above.
    unsafe { ptr::read_volatile(&raw const HZ) }
}

#[inline(always)]
pub fn offset(member: Member) -> usize {
    // SAFETY: as above; `member` is less than MEMBERS.
    unsafe { ptr::read_volatile((&raw const OFFSETS).cast::<u32>().add(member as usize)) as usize }
}

/// The kernel's tables as [`sluice_common::pick`] wants them.
pub struct Kernel;

impl Tables for Kernel {
    type Entry = &'static Backend;

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        let entry = SLOTS.get(index / SLOTS_PER_ENTRY)?;
        entry.get((index % SLOTS_PER_ENTRY) as usize).copied()
    }
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&'static Backend> {
        BACKENDS.get(id)
    }
    #[inline(always)]
    fn node_is_open(&self, id: u32) -> bool {
        NODES.get(id).is_some_and(|node| node.closed == 0)
    }
    #[inline(always)]
    fn pick_open(&self, table: Table, draw: u64) -> Option<u32> {
        let id = skip_closed(table.0, draw);
        (id != NONE).then_some(id)
    }
    #[inline(always)]
    fn first_open(&self, list: List) -> Option<u32> {
        let mut scan = Scan { list, found: NONE };
        // SAFETY: the callback has the signature that the helper calls, and `scan` outlives the loop.
        unsafe { bpf_loop(list.length, scan_step as *mut c_void, (&raw mut scan).cast(), 0) };
        (scan.found != NONE).then_some(scan.found)
    }
}

/// No backend has this id.
const NONE: u32 = u32::MAX;

/// Out of line: it runs only between a zero and the next table.
#[inline(never)]
fn skip_closed(table: u64, draw: u64) -> u32 {
    pick::pick_open(&Kernel, Table(table), draw).unwrap_or(NONE)
}

#[repr(C)]
struct Scan {
    list: List,
    found: u32,
}

/// Returns 1 to end the loop.
extern "C" fn scan_step(index: u32, scan: *mut Scan) -> i64 {
    // SAFETY: `bpf_loop` passes what `first_open` gave it.
    let scan = unsafe { &mut *scan };
    match scan.list.open_at(&Kernel, index) {
        Some(id) => {
            scan.found = id;
            1
        }
        None => 0,
    }
}

impl Buckets for Kernel {
    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*const Bucket> {
        FRONTENDS.get_ptr(index)
    }
    #[inline(always)]
    fn mask(&self) -> u32 {
        // SAFETY: a static of this object; volatile, because the agent changes it after compilation.
        unsafe { ptr::read_volatile(&raw const FRONTENDS_MASK) }
    }
    #[inline(always)]
    fn further(&self, frontend: &Endpoint) -> u32 {
        look_further(frontend)
    }
}

/// Out of line: few frontends are not in their home, and of other addresses nearly none comes here.
#[inline(never)]
fn look_further(frontend: &Endpoint) -> u32 {
    frontends::further(&Kernel, frontend)
}

/// The service that has this frontend.
#[inline(always)]
pub fn service_of(frontend: &Endpoint) -> Option<u32> {
    let bit = filter_bit(frontend);
    if FILTER.get(bit / 64)? >> (bit % 64) & 1 == 0 {
        return None;
    }
    frontends::find(&Kernel, frontend)
}

/// CLOCK_MONOTONIC ns of a pick, see [`Counters::last_pick`].
///
/// On x86, whoever reads an old `exact_until` does so before the agent's store, and the clock was read before that too.
#[inline(always)]
pub fn time_of_pick(service: *mut Service) -> u64 {
    // SAFETY: helpers without arguments; live map values, aligned words.
    unsafe {
        let tick = bpf_ktime_get_coarse_ns();
        let read = ptr::read_volatile(&raw const (*service).clock_read);
        let is_exact = META.get_ptr(0).is_none_or(|meta| ptr::read_volatile(&raw const (*meta).exact_until) > tick);
        if read >= tick && !is_exact {
            return read;
        }
        let now = bpf_ktime_get_ns();
        ptr::write_volatile(&raw mut (*service).clock_read, now);
        now
    }
}

/// Counts a way out. Not atomic: the counter is this CPU's own, and of two tasks that a preemption interleaves within
/// these few instructions one goes uncounted.
#[inline(always)]
pub fn count(program: Program, verdict: Verdict) {
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict::index(program, verdict)) {
        // SAFETY: a live map value.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
pub fn counters(backend_id: u32) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(backend_id)
}

/// Adds to a field that all CPUs share.
#[inline(always)]
pub fn add(field: *mut u64, amount: u64) {
    // SAFETY: the callers pass fields of live map values. The old value is not used: a plain locked add.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(field, amount) };
}

/// As [`add`], for the buckets of histograms.
#[inline(always)]
pub fn add_one(field: *mut u32) {
    // SAFETY: as in `add`.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::Relaxed }>(field, 1) };
}

/// The value of a shared counter, which this call moves on by one.
#[inline(always)]
pub fn next(field: *mut u64) -> u64 {
    // SAFETY: as in `add`. Not relaxed: LLVM makes a locked add that returns nothing out of a relaxed one.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(field, 1) }
}

/// As [`next`], for half a word.
#[inline(always)]
pub fn next_one(field: *mut u32) -> u32 {
    // SAFETY: as in `next`.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(field, 1) }
}

#[inline(always)]
fn connections() -> *mut c_void {
    (&raw const CONNECTIONS).cast_mut().cast()
}

/// The socket's record, or null.
#[inline(always)]
pub fn connection<S>(socket: *mut S) -> *mut Connection {
    // SAFETY: `socket` comes from a context, and the helper takes null.
    unsafe { bpf_sk_storage_get(connections(), socket.cast(), ptr::null_mut(), 0).cast() }
}

/// The socket's record, made from `initial` when there is none; null when memory is short.
#[inline(always)]
pub fn connection_or<S>(socket: *mut S, initial: &mut Connection) -> *mut Connection {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: as above; the helper copies `initial`.
    unsafe { bpf_sk_storage_get(connections(), socket.cast(), ptr::from_mut(initial).cast(), flags).cast() }
}

#[inline(always)]
pub fn forget<S>(socket: *mut S) {
    // SAFETY: as above.
    unsafe { bpf_sk_storage_delete(connections(), socket.cast()) };
}
