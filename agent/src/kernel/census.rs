//! Every steered socket of the host, read by an iterator over the socket storage.
#![allow(unsafe_code)]

use std::{
    collections::HashSet,
    hash::Hash,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use sluice_common::records::CensusRow;

use super::sys::{self, Map};
use crate::observe::{census::Census, clock};

/// The iterators over all steered sockets.
pub struct CensusProgram {
    program: ProgramFd,
    tally: ProgramFd,
    connections: Map,
}

impl CensusProgram {
    pub fn new(program: ProgramFd, tally: ProgramFd, connections: Map) -> Self {
        Self { program, tally, connections }
    }

    /// Runs the program that counts by backend; the counts are in TALLY then.
    ///
    /// # Errors
    /// As [`CensusProgram::read`].
    pub fn tally(&self) -> Result<()> {
        self.run(&self.tally).map(drop)
    }

    /// One pass over all steered sockets.
    ///
    /// # Errors
    /// When the kernel refuses the iterator.
    pub fn read(&self) -> Result<Census> {
        let bytes = self.run(&self.program)?;
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

    fn run(&self, program: &ProgramFd) -> Result<Vec<u8>> {
        let link = sys::iterator_link(program.as_fd().as_raw_fd(), Some(self.connections.fd()));
        link.and_then(|link| sys::run_iterator(&link)).context("walking the steered sockets")
    }
}

/// What no two connected sockets have in common.
fn ends(row: &CensusRow) -> impl Eq + Hash + use<> {
    (row.netns, row.connection.protocol, row.local, row.local_port, row.remote, row.remote_port)
}
