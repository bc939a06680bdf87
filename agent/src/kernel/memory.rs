//! The array tables, mapped into the agent: a change is a store, not a system call, and is in force when it is done.
#![allow(unsafe_code)]

use std::{
    io::Error,
    marker::PhantomData,
    mem::size_of,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
};

use anyhow::{Context, Result, bail};
use sluice_common::{
    ABI_VERSION,
    registry::{BACKENDS, COUNTERS, META, NODES, SERVICES, SLOTS, TALLY, TALLY_BEFORE, TableOf, VERDICTS},
    tables::{BackendEntry, ConnectionFailure, Counters, Meta, NodeEntry, SLOTS_PER_ENTRY, ServiceEntry, TableWord},
};

use super::{object::Object, sys::Map};
use crate::{host::clock, plan::service::fingerprint};

/// Part of an array map, mapped read-write for as long as this value lives.
pub(super) struct Window<T> {
    address: NonNull<libc::c_void>,
    bytes: usize,
    /// First element, within the page-aligned mapping.
    first: *mut T,
    length: usize,
    element: PhantomData<T>,
}

// SAFETY: the memory is shared with the kernel anyway; every access below is atomic or to an element that nobody else
// uses at that time.
unsafe impl<T> Send for Window<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Window<T> {}

impl<T: Copy> Window<T> {
    /// Maps a whole table.
    pub(super) fn whole(object: &Object, table: &TableOf<u32, T>) -> Result<Self> {
        let (map, length) = object.array(table)?;
        Self::new(&map, 0, length)
    }

    /// Maps `length` elements from index `from` on. The caller has checked that they exist.
    pub(super) fn new(map: &Map, from: usize, length: usize) -> Result<Self> {
        const PAGE: usize = 4096;
        let (start, end) = (from * size_of::<T>(), (from + length) * size_of::<T>());
        let offset = start / PAGE * PAGE;
        let bytes = (end - offset).next_multiple_of(PAGE).max(PAGE);
        // SAFETY: a new mapping at an address of the kernel's choice; the result is checked.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd(),
                offset as libc::off_t,
            )
        };
        let address = match NonNull::new(address) {
            Some(address) if address.as_ptr() != libc::MAP_FAILED => address,
            _ => return Err(Error::last_os_error()).context("mapping a table into memory"),
        };
        // SAFETY: inside the mapping.
        let first = unsafe { address.as_ptr().cast::<u8>().add(start - offset) }.cast::<T>();
        Ok(Self { address, bytes, first, length, element: PhantomData })
    }

    /// Memory that no kernel reads.
    #[cfg(test)]
    pub(super) fn anonymous(length: usize) -> Result<Self> {
        let bytes = length * size_of::<T>();
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = NonNull::new(unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) });
        let address = address.filter(|at| at.as_ptr() != libc::MAP_FAILED).context("mapping memory")?;
        Ok(Self { address, bytes, first: address.as_ptr().cast(), length, element: PhantomData })
    }

    pub(super) fn at(&self, index: usize) -> Option<*mut T> {
        // SAFETY: inside the mapping.
        (index < self.length).then(|| unsafe { self.first.add(index) })
    }
}

impl<T> Drop for Window<T> {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.address.as_ptr(), self.bytes) };
    }
}

/// The tables of one data plane. Writing is for [`super::Kernel`] alone.
pub struct MappedTables {
    services: Window<ServiceEntry>,
    backends: Window<BackendEntry>,
    nodes: Window<NodeEntry>,
    meta: Window<Meta>,
    /// The kernel's number of COUNTERS.
    counter_table: u32,
    /// Too large to stay mapped: [`Window`]s come and go.
    slots: Map,
    slot_count: usize,
    counters: Map,
    counter_count: usize,
    verdicts: Map,
    tally: Map,
    tally_before: Window<u64>,
    cpus: usize,
}

/// Counters mapped at a time: 64 KiB.
const COUNTERS_AT_ONCE: usize = 256;

impl MappedTables {
    pub(super) fn map(object: &Object) -> Result<Self> {
        let (slots, slot_entries) = object.array(&SLOTS)?;
        let (counters, counter_count) = object.array(&COUNTERS)?;
        Ok(Self {
            services: Window::whole(object, &SERVICES)?,
            backends: Window::whole(object, &BACKENDS)?,
            nodes: Window::whole(object, &NODES)?,
            meta: Window::whole(object, &META)?,
            counter_table: object.map(&COUNTERS.spec)?.info().context("asking which table COUNTERS is")?.id,
            slots,
            slot_count: slot_entries * SLOTS_PER_ENTRY as usize,
            counters,
            counter_count,
            verdicts: object.map(&VERDICTS.spec)?,
            tally: object.map(&TALLY.spec)?,
            tally_before: Window::whole(object, &TALLY_BEFORE)?,
            cpus: aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("reading {path}: {error}"))?,
        })
    }

    pub(super) fn stamp_version(&self) {
        if let Some(meta) = self.meta.at(0) {
            // SAFETY: a live mapping; programs do not read this member.
            unsafe { (*meta).abi_version = ABI_VERSION };
        }
    }

    pub(super) fn store_identity(&self) -> [u8; 16] {
        // SAFETY: as above.
        self.meta.at(0).map_or([0; 16], |meta| unsafe { (*meta).store })
    }

    pub(super) fn set_store_identity(&self, identity: [u8; 16]) {
        if let Some(meta) = self.meta.at(0) {
            // SAFETY: as above.
            unsafe {
                // The revision is that of another store.
                if (*meta).store != identity {
                    (*meta).revision = 0;
                }
                (*meta).store = identity;
            }
        }
    }

    pub(super) fn counter_table(&self) -> u32 {
        self.counter_table
    }

    pub(super) fn revision(&self) -> u32 {
        // SAFETY: as above.
        self.meta.at(0).map_or(0, |meta| unsafe { (*meta).revision })
    }

    pub(super) fn set_revision(&self, revision: u32) {
        if let Some(meta) = self.meta.at(0) {
            // SAFETY: as above.
            unsafe { (*meta).revision = revision };
        }
    }

    /// Picks take exact times from now on, for longer than the kernel's ticks may be late. The returned time of
    /// CLOCK_MONOTONIC, ns, is after the times of picks that began before this call, and not after those of later ones.
    pub(super) fn begin_exact_times(&self) -> u64 {
        const LASTS: u64 = 1_000_000_000;
        let Some(meta) = self.meta.at(0) else { return clock::monotonic_ns() };
        // SAFETY: an aligned word of a live mapping.
        let exact_until = unsafe { AtomicU64::from_ptr(&raw mut (*meta).exact_until) };
        loop {
            // Several threads ask, and each may be stopped for longer than it lasts: nobody shortens another's time, and
            // a time that is over proves nothing.
            let until = clock::monotonic_ns() + LASTS;
            exact_until.fetch_max(until, Ordering::SeqCst);
            let since = clock::monotonic_ns();
            if since < until {
                return since;
            }
        }
    }

    pub(super) fn set_node(&self, node: u32, closed: u32) -> Result<()> {
        let at = self.nodes.at(node as usize).with_context(|| beyond(&NODES, node))?;
        // SAFETY: an aligned word of a live mapping.
        unsafe { AtomicU32::from_ptr(&raw mut (*at).closed) }.store(closed, Ordering::SeqCst);
        Ok(())
    }

    /// Writes a whole entry. It is in no table yet, or has the address and port that are there.
    pub(super) fn put_backend(&self, backend: u32, value: &BackendEntry) -> Result<()> {
        let at = self.backends.at(backend as usize).with_context(|| beyond(&BACKENDS, backend))?;
        // SAFETY: live mapping. Address and port do not change under a program that reads them (see above), so what
        // may is stored atomically and the rest plainly.
        unsafe {
            if (*at).address != value.address || (*at).port != value.port {
                (*at).address = value.address;
                (*at).port = value.port;
            }
            AtomicU16::from_ptr(&raw mut (*at).keeps_flows).store(value.keeps_flows, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).flow_timeout).store(value.flow_timeout, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).node).store(value.node, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).closed).store(value.closed, Ordering::SeqCst);
        }
        Ok(())
    }

    pub(super) fn close_backend(&self, backend: u32, closed: u32) -> Result<()> {
        let at = self.backends.at(backend as usize).with_context(|| beyond(&BACKENDS, backend))?;
        // SAFETY: an aligned word of a live mapping.
        unsafe { AtomicU32::from_ptr(&raw mut (*at).closed) }.store(closed, Ordering::SeqCst);
        Ok(())
    }

    /// Makes an entry as new: no table, flow or connection refers to it any more.
    pub(super) fn forget_backend(&self, backend: u32) -> Result<()> {
        let at = self.backends.at(backend as usize).with_context(|| beyond(&BACKENDS, backend))?;
        let counters = self.counters_window(backend as usize, 1)?;
        let counter = counters.at(0).with_context(|| beyond(&COUNTERS, backend))?;
        // SAFETY: live mappings; by the caller's word nobody else uses these entries.
        unsafe {
            ptr::write_bytes(counter, 0, 1);
            // Last: an entry that is there keeps its id from being given out.
            ptr::write_bytes(at, 0, 1);
        }
        Ok(())
    }

    pub(super) fn begin_service(&self, service: u32, start: u64) -> Result<()> {
        let at = self.services.at(service as usize).with_context(|| beyond(&SERVICES, service))?;
        // SAFETY: live mapping; no frontend leads here yet.
        unsafe {
            ptr::write_bytes(at, 0, 1);
            (*at).start = start;
        }
        Ok(())
    }

    /// Writes slots that no current table covers.
    pub(super) fn write_slots(&self, base: u32, entries: &[u32]) -> Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        if base as usize + entries.len() > self.slot_count {
            bail!(beyond(&SLOTS, base));
        }
        let window = Window::<u32>::new(&self.slots, base as usize, entries.len())?;
        // SAFETY: inside the mapping; these slots are in no current table.
        unsafe { ptr::copy_nonoverlapping(entries.as_ptr(), window.first, entries.len()) };
        Ok(())
    }

    /// The moment at which a table is in force.
    pub(super) fn flip(&self, service: u32, table: TableWord) -> Result<()> {
        let at = self.services.at(service as usize).with_context(|| beyond(&SERVICES, service))?;
        // SAFETY: an aligned word of a live mapping. Release: the slots written before are seen with it.
        unsafe { AtomicU64::from_ptr(&raw mut (*at).table) }.store(table.0, Ordering::SeqCst);
        Ok(())
    }

    /// Clears TALLY: the connections that are there now count, and no later ones.
    pub(super) fn begin_tally(&self) -> Result<()> {
        let before = self.begin_exact_times();
        let window = Window::<u64>::new(&self.tally, 0, self.counter_count)?;
        // SAFETY: live mappings; no tally runs.
        unsafe {
            ptr::write_bytes(window.first, 0, window.length);
            AtomicU64::from_ptr(self.tally_before.first).store(before, Ordering::SeqCst);
        }
        Ok(())
    }

    /// What the tally found for each of the backends: connections on their way, and established ones.
    pub(super) fn tally(&self, ids: impl Iterator<Item = u32>) -> Result<Vec<(u64, u64)>> {
        let window = Window::<u64>::new(&self.tally, 0, self.counter_count)?;
        // SAFETY: aligned words of a live mapping.
        let read = |at: *mut u64| unsafe { AtomicU64::from_ptr(at) }.load(Ordering::SeqCst);
        let found = ids.map(|id| window.at(id as usize).map_or(0, read));
        Ok(found.map(|both| (both & 0xffff_ffff, both >> 32)).collect())
    }

    pub(super) fn add_lost(&self, backend: u32, established: u64, connecting: u64) -> Result<()> {
        let window = self.counters_window(backend as usize, 1)?;
        let at = window.at(0).with_context(|| beyond(&COUNTERS, backend))?;
        // SAFETY: aligned words of a live mapping.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*at).lost).fetch_add(established, Ordering::SeqCst);
            let abandoned = (&raw mut (*at).failed).cast::<u64>().add(ConnectionFailure::Abandoned as usize);
            AtomicU64::from_ptr(abandoned).fetch_add(connecting, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Services that have a table, with its fingerprint.
    pub(super) fn services(&self) -> Result<Vec<(u32, TableWord, u64)>> {
        let ids = 0..self.services.length as u32;
        let present = ids.filter_map(|id| Some((id, self.table(id).filter(|table| table.present())?)));
        let held = present.map(|(id, table)| {
            let entries = self.slots(table.base(), table.length() + table.distinct())?;
            Ok((id, table, fingerprint(table, &entries)))
        });
        held.collect()
    }

    pub(super) fn backends(&self) -> Vec<(u32, BackendEntry)> {
        (0..self.backends.length as u32)
            .filter_map(|id| self.backend(id).filter(|backend| backend.port != 0).map(|backend| (id, backend)))
            .collect()
    }

    pub(super) fn nodes(&self) -> Vec<(u32, u32)> {
        (0..self.nodes.length as u32).map(|id| (id, self.node_closed(id))).filter(|(_, closed)| *closed != 0).collect()
    }

    pub(super) fn table(&self, service: u32) -> Option<TableWord> {
        let at = self.services.at(service as usize)?;
        // SAFETY: an aligned word of a live mapping.
        Some(TableWord(unsafe { AtomicU64::from_ptr(&raw mut (*at).table) }.load(Ordering::SeqCst)))
    }

    pub(super) fn no_backend(&self, service: u32) -> Option<u64> {
        let at = self.services.at(service as usize)?;
        // SAFETY: as above.
        Some(unsafe { AtomicU64::from_ptr(&raw mut (*at).no_backend) }.load(Ordering::Relaxed))
    }

    pub(super) fn backend(&self, id: u32) -> Option<BackendEntry> {
        // SAFETY: a live mapping; address and port do not change while an entry is in use, and what does is one word each.
        self.backends.at(id as usize).map(|at| unsafe { ptr::read_volatile(at) })
    }

    pub(super) fn node_closed(&self, id: u32) -> u32 {
        // SAFETY: an aligned word of a live mapping.
        self.nodes
            .at(id as usize)
            .map_or(0, |at| unsafe { AtomicU32::from_ptr(&raw mut (*at).closed) }.load(Ordering::SeqCst))
    }

    /// Part of SLOTS, copied.
    pub(super) fn slots(&self, base: u32, length: u32) -> Result<Vec<u32>> {
        if length == 0 || (base as usize + length as usize) > self.slot_count {
            return Ok(Vec::new());
        }
        let window = Window::<u32>::new(&self.slots, base as usize, length as usize)?;
        // SAFETY: inside the mapping. A table that is replaced meanwhile gives an old answer, not a wrong one.
        Ok((0..length as usize).map(|i| unsafe { ptr::read_volatile(window.first.add(i)) }).collect())
    }

    /// Counters of the given backends, in that order; zero for ids beyond the table.
    pub(super) fn counters(&self, ids: impl Iterator<Item = u32>) -> Result<Vec<Counters>> {
        let mut window: Option<(usize, Window<Counters>)> = None;
        let mut found = Vec::with_capacity(ids.size_hint().0);
        for id in ids {
            let (chunk, index) = (id as usize / COUNTERS_AT_ONCE, id as usize % COUNTERS_AT_ONCE);
            if window.as_ref().is_none_or(|(held, _)| *held != chunk) {
                let from = chunk * COUNTERS_AT_ONCE;
                let length = COUNTERS_AT_ONCE.min(self.counter_count.saturating_sub(from));
                window = Some((chunk, self.counters_window(from, length)?));
            }
            let at = window.as_ref().and_then(|(_, window)| window.at(index));
            // SAFETY: live mapping; every field is an aligned word that programs add to, read by whole words.
            found.push(at.map_or_else(zero_counters, |at| unsafe { ptr::read_volatile(at) }));
        }
        Ok(found)
    }

    /// Copies counts of another table of verdicts, by index there and here. No program counts here yet.
    pub(super) fn carry_verdicts(&self, from: &Map, pairs: impl Iterator<Item = (u32, u32)>) -> Result<()> {
        let mut values = vec![0; self.cpus];
        for (there, here) in pairs {
            from.lookup_per_cpu(there, &mut values)?;
            self.verdicts.update_per_cpu(here, &values)?;
        }
        Ok(())
    }

    /// Count of one verdict over all CPUs.
    pub(super) fn verdict(&self, index: u32) -> Result<u64> {
        let mut values = vec![0; self.cpus];
        self.verdicts.lookup_per_cpu(index, &mut values).context("reading VERDICTS")?;
        Ok(values.iter().sum())
    }

    fn counters_window(&self, from: usize, length: usize) -> Result<Window<Counters>> {
        if from + length > self.counter_count {
            bail!(beyond(&COUNTERS, from as u32));
        }
        Window::new(&self.counters, from, length)
    }
}

fn zero_counters() -> Counters {
    // SAFETY: integers and arrays of them.
    unsafe { std::mem::zeroed() }
}

pub(super) fn beyond<V>(table: &TableOf<u32, V>, index: u32) -> String {
    format!("{} has no entry {index}", table.spec.name)
}
