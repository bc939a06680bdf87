//! From an address to a backend: the service, its table, a draw, a slot, a backend that is open. No hook is known here:
//! the caller is a [`Requester`].

use core::{ffi::c_void, ptr};

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns, bpf_loop};
use sluice_common::{
    frontends::{self, Bucket, Buckets, filter_bit},
    pick::{self, BackendList, ClientIdentity, Tables},
    sequence::{self, sequence_of},
    tables::{BackendEntry, Balance, CLOSED_ZERO, Endpoint, SLOTS_PER_ENTRY, ServiceEntry, TableWord},
    verdict::Verdict,
};

use crate::{
    counters::{add, counters, step},
    storage::{BACKENDS, FILTER, FRONTENDS, META, NODES, SERVICES, SLOTS, frontends_mask},
};

/// A caller that asks for a backend.
pub trait Requester {
    /// Whether it can speak with this address.
    fn reaches(&self, address: &[u32; 4]) -> bool;
    /// What tells the caller from others.
    fn client(&self) -> ClientIdentity;
}

/// Is told each step of a decision.
pub trait Observer {
    /// The address is a frontend of this service.
    fn finds(&mut self, service_id: u32);
    /// This draw goes to this table; what is open decides what [`pick::pick`] makes of both.
    fn draws(&mut self, table: TableWord, draw: u64);
    /// The choice fell on this backend. The call goes there if the caller reaches it.
    fn takes(&mut self, backend_id: u32);
}

/// Observes nothing, and costs nothing.
pub struct Unobserved;

impl Observer for Unobserved {
    #[inline(always)]
    fn finds(&mut self, _: u32) {}
    #[inline(always)]
    fn draws(&mut self, _: TableWord, _: u64) {}
    #[inline(always)]
    fn takes(&mut self, _: u32) {}
}

/// A backend, chosen for a call and counted.
pub struct Choice {
    pub id: u32,
    pub backend: &'static BackendEntry,
    /// Read before the backend was seen to be open.
    pub time: u64,
}

/// The service that has this frontend.
#[inline(always)]
pub fn service_of(frontend: &Endpoint) -> Option<u32> {
    let bit = filter_bit(frontend);
    if FILTER.get(bit / 64)? >> (bit % 64) & 1 == 0 {
        return None;
    }
    frontends::find(&KernelTables, frontend)
}

/// Chooses a backend that the caller reaches, and counts the choice; `Err` says why there is none.
#[inline(always)]
pub fn choose(
    caller: &impl Requester,
    observer: &mut impl Observer,
    frontend: &Endpoint,
    service_id: u32,
) -> Result<Choice, Verdict> {
    let service = SERVICES.get_ptr_mut(service_id).ok_or(Verdict::Broken)?;
    // Before the state is read: see `Counters::last_pick`.
    let time = time_of_pick(service);
    // SAFETY: a live map value; one aligned 64-bit load, so that the word is the old or the new one.
    let table = TableWord(unsafe { ptr::read_volatile(&raw const (*service).table) });
    if !table.present() {
        return Err(Verdict::Broken);
    }
    let draw = draw(caller, frontend, service, table);
    observer.draws(table, draw);
    let Some((id, backend)) = pick::pick(&KernelTables, table, draw) else {
        // SAFETY: as above.
        add(unsafe { &raw mut (*service).no_backend }, 1);
        return Err(if table.pass() { Verdict::Passed } else { Verdict::Refused });
    };
    observer.takes(id);
    if !caller.reaches(&backend.address) {
        return Err(Verdict::Broken);
    }
    if let Some(counters) = counters(id) {
        // SAFETY: as above; `last_pick` is one aligned store, and the last writer wins.
        unsafe {
            add(&raw mut (*counters).picked, 1);
            ptr::write_volatile(&raw mut (*counters).last_pick, time);
        }
    }
    Ok(Choice { id, backend, time })
}

#[inline(always)]
fn draw(caller: &impl Requester, frontend: &Endpoint, service: *mut ServiceEntry, table: TableWord) -> u64 {
    let balance = table.balance();
    if balance == Balance::Spread as u32 || balance == Balance::Scatter as u32 {
        let which = sequence_of(frontend);
        // SAFETY: a live map value, an index below the length of its array, aligned words.
        unsafe {
            let start = ptr::read_volatile(&raw const (*service).start);
            let counts = (&raw mut (*service).sequences).cast::<u64>().add(which);
            if balance == Balance::Spread as u32 {
                return start.wrapping_add(step(counts, 1));
            }
            let lane = sequence::lane(start, which, ptr::read_volatile(counts));
            sequence::draw(start, lane, step(counts, sequence::step(lane)))
        }
    } else if balance == Balance::Random as u32 {
        // SAFETY: helper without arguments.
        u64::from(unsafe { bpf_get_prandom_u32() })
    } else {
        caller.client().draw()
    }
}

/// CLOCK_MONOTONIC ns of a pick, see `Counters::last_pick`.
///
/// On x86 a program that reads an old `exact_until` read it before the agent's store, and read the clock earlier still.
#[inline(always)]
fn time_of_pick(service: *mut ServiceEntry) -> u64 {
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

/// The kernel's tables as [`sluice_common::pick`] wants them.
pub struct KernelTables;

impl Tables for KernelTables {
    type Entry = &'static BackendEntry;

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        let entry = SLOTS.get(index / SLOTS_PER_ENTRY)?;
        entry.get((index % SLOTS_PER_ENTRY) as usize).copied()
    }
    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&'static BackendEntry> {
        BACKENDS.get(id)
    }
    #[inline(always)]
    fn node_closed(&self, id: u32) -> u32 {
        NODES.get(id).map_or(CLOSED_ZERO, |node| node.closed)
    }
    #[inline(always)]
    fn pick_open(&self, table: TableWord, draw: u64) -> Option<u32> {
        let id = skip_closed(table.0, draw);
        (id != NONE).then_some(id)
    }
    #[inline(always)]
    fn first_open(&self, list: BackendList) -> Option<u32> {
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
    pick::pick_open(&KernelTables, TableWord(table), draw).unwrap_or(NONE)
}

#[repr(C)]
struct Scan {
    list: BackendList,
    found: u32,
}

/// Returns 1 to end the loop.
extern "C" fn scan_step(index: u32, scan: *mut Scan) -> i64 {
    // SAFETY: `bpf_loop` passes what `first_open` gave it.
    let scan = unsafe { &mut *scan };
    match scan.list.open_at(&KernelTables, index) {
        Some(id) => {
            scan.found = id;
            1
        }
        None => 0,
    }
}

impl Buckets for KernelTables {
    #[inline(always)]
    fn bucket(&self, index: u32) -> Option<*const Bucket> {
        FRONTENDS.get_ptr(index)
    }
    #[inline(always)]
    fn mask(&self) -> u32 {
        frontends_mask()
    }
    #[inline(always)]
    fn further(&self, frontend: &Endpoint) -> u32 {
        look_further(frontend)
    }
}

/// Out of line: few frontends are not in their home, and of other addresses nearly none comes here.
#[inline(never)]
fn look_further(frontend: &Endpoint) -> u32 {
    frontends::further(&KernelTables, frontend)
}
