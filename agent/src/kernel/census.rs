//! Every steered socket of the host, read by an iterator.
#![allow(unsafe_code)]

use std::{collections::HashSet, hash::Hash, mem::size_of};

use anyhow::Result;
use sluice_common::records::CensusRow;

use super::walk::Walk;
use crate::{host::clock, kernel::sockets::Census};

/// The iterators over all steered sockets.
pub struct CensusProgram {
    census: Walk,
    tally: Walk,
}

impl CensusProgram {
    pub fn new(census: Walk, tally: Walk) -> Self {
        Self { census, tally }
    }

    /// Runs the program that counts by backend; the counts are in TALLY then.
    ///
    /// # Errors
    /// As [`CensusProgram::read`].
    pub fn tally(&self) -> Result<()> {
        self.tally.run_thorough().map(drop)
    }

    /// One pass over all steered sockets.
    ///
    /// # Errors
    /// When the kernel refuses the iterator.
    pub fn read(&self) -> Result<Census> {
        let bytes = self.census.run()?;
        let mut rows: Vec<CensusRow> = bytes
            .chunks_exact(size_of::<CensusRow>())
            // SAFETY: integers and arrays of them, as many bytes as the type has; no alignment is asked for.
            .map(|row| unsafe { std::ptr::read_unaligned(row.as_ptr().cast()) })
            .collect();
        // Between two reads the kernel remembers its place by counting: when a socket before it closes, it shows another
        // one twice or not at all.
        let mut seen = HashSet::new();
        rows.retain(|row| row.local_port == 0 || seen.insert(ends(row)));
        Ok(Census { rows, hz: clock::hz() })
    }
}

/// What no two connected sockets have in common.
fn ends(row: &CensusRow) -> impl Eq + Hash + use<> {
    (row.netns, row.connection.protocol, row.local, row.local_port, row.remote, row.remote_port)
}
