//! STREAKS, mapped: the streaks of each backend, and the limits at which the programs signal.
#![allow(unsafe_code)]

use std::{
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use sluice_common::{
    registry::STREAKS,
    streak::{FailureStreak, MEASURED},
};

use super::{
    memory::{Window, beyond},
    object::Object,
};
use crate::{control::outlier::SignalLimits, model::BackendId};

/// The streaks of all backends. They are pinned: they go on while no agent runs, and the next one finds them.
#[derive(Clone)]
pub struct StreakTable {
    entries: Arc<Window<FailureStreak>>,
}

impl StreakTable {
    pub(super) fn map(object: &Object) -> Result<Self> {
        Ok(Self { entries: Arc::new(Window::whole(object, &STREAKS)?) })
    }

    /// Sets when the programs signal. Takes effect with the next failure; the streaks go on as they are.
    ///
    /// # Errors
    /// When the table has no such entry.
    pub fn set_limits(&self, backend: BackendId, limits: SignalLimits) -> Result<()> {
        let at = self.at(backend)?;
        // SAFETY: aligned words of a live mapping.
        unsafe {
            AtomicU32::from_ptr(&raw mut (*at).resets_limit).store(limits.early_resets, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).failures_limit).store(limits.failures, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Sets whether the backend's turn times are measured while that program is attached.
    ///
    /// # Errors
    /// As [`StreakTable::set_limits`].
    pub fn set_measured(&self, backend: BackendId, measured: bool) -> Result<()> {
        let at = self.at(backend)?;
        let flags = if measured { MEASURED } else { 0 };
        // SAFETY: an aligned word of a live mapping.
        unsafe { AtomicU32::from_ptr(&raw mut (*at).flags) }.store(flags, Ordering::SeqCst);
        Ok(())
    }

    /// What an earlier agent measured says nothing of what this one wants to.
    pub(super) fn measure_nothing(&self) {
        for at in (0..).map_while(|index| self.entries.at(index)) {
            // SAFETY: an aligned word of a live mapping; written only where it is set, so that nothing is paged in.
            unsafe {
                if ptr::read_volatile(&raw const (*at).flags) != 0 {
                    AtomicU32::from_ptr(&raw mut (*at).flags).store(0, Ordering::SeqCst);
                }
            }
        }
    }

    /// Begins the streaks anew for what is picked after `since`, a time from which on picks take exact times: what was
    /// counted so far has led to its consequence. Limits and totals stay.
    ///
    /// # Errors
    /// As [`StreakTable::set_limits`].
    pub fn restart(&self, backend: BackendId, since: u64) -> Result<()> {
        let at = self.at(backend)?;
        // SAFETY: aligned words of a live mapping. A failure that is counted in this moment may be the first of the new
        // streak or the last of the old one.
        unsafe {
            AtomicU64::from_ptr(&raw mut (*at).restarted).store(since, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).failures).store(0, Ordering::SeqCst);
            AtomicU32::from_ptr(&raw mut (*at).early_resets).store(0, Ordering::SeqCst);
            AtomicU64::from_ptr(&raw mut (*at).unanswered_since).store(0, Ordering::SeqCst);
        }
        Ok(())
    }

    /// The streaks as they stand; zero for an id beyond the table.
    pub fn read(&self, backend: BackendId) -> FailureStreak {
        let at = self.entries.at(backend.0 as usize);
        // SAFETY: live mapping; every field is an aligned word that programs write, read by whole words.
        at.map_or_else(FailureStreak::default, |at| unsafe { ptr::read_volatile(at) })
    }

    /// Makes an entry as new: its id is about to be another backend's.
    pub(super) fn forget(&self, backend: BackendId) -> Result<()> {
        let at = self.at(backend)?;
        // SAFETY: live mapping; no table and no connection refers to this backend any more.
        unsafe { ptr::write_bytes(at, 0, 1) };
        Ok(())
    }

    fn at(&self, backend: BackendId) -> Result<*mut FailureStreak> {
        self.entries.at(backend.0 as usize).with_context(|| beyond(&STREAKS, backend.0))
    }
}
