//! Counters: verdicts on each CPU by itself, figures of a backend on all CPUs together.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use sluice_common::{
    tables::Counters,
    verdict::{self, Program, Verdict},
};

use crate::storage::{COUNTERS, VERDICTS};

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

/// As [`add`]; returns the former value.
#[inline(always)]
pub fn step(field: *mut u64, amount: u64) -> u64 {
    // SAFETY: as in `add`. Not relaxed: LLVM makes a locked add that returns nothing out of a relaxed one.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(field, amount) }
}

/// Increments half a word that all CPUs share; returns its former value.
#[inline(always)]
pub fn next_one(field: *mut u32) -> u32 {
    // SAFETY: as in `step`.
    unsafe { atomic_xadd::<u32, u32, { AtomicOrdering::AcqRel }>(field, 1) }
}

/// Index of the first bucket whose bound `1 << (i * step)` is not below `value`; the last one has no bound.
#[inline(always)]
pub fn bucket(value: u64, buckets: usize, step: u32) -> usize {
    let mut rest = value;
    let mut index = 0;
    while index < buckets - 1 && rest != 0 {
        rest >>= step;
        index += 1;
    }
    index
}
