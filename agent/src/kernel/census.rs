//! Every steered socket of the host, read by an iterator over the socket storage.
#![allow(unsafe_code)]

use std::{
    collections::HashSet,
    fs::File,
    hash::Hash,
    io::Read,
    mem::size_of,
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use sluice_common::records::CensusRow;

use super::sys::{self, Map};
use crate::observe::census::Census;

/// The iterator program with its map.
pub struct CensusProgram {
    program: ProgramFd,
    tally: ProgramFd,
    connections: Map,
}

/// A reading of both of the kernel's clocks.
#[derive(Clone, Copy, Debug)]
struct Clock {
    /// CLOCK_MONOTONIC, ns.
    monotonic: u64,
    /// Low 32 bits.
    jiffies: u32,
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
        let fd = sys::map_iterator(self.tally.as_fd().as_raw_fd(), self.connections.fd())
            .context("iterating over the socket storage")?;
        File::from(fd).read_to_end(&mut Vec::new()).context("counting the steered sockets")?;
        Ok(())
    }

    /// One pass over all steered sockets.
    ///
    /// # Errors
    /// When the kernel refuses the iterator.
    pub fn read(&self, hz: u32) -> Result<Census> {
        let (mut rows, _) = self.pass()?;
        // Between two reads the kernel remembers its place by counting: when a socket before it closes, it shows another
        // one twice or not at all.
        let mut seen = HashSet::new();
        rows.retain(|row| row.local_port == 0 || seen.insert(ends(row)));
        Ok(Census { rows, hz })
    }

    /// Jiffies a second, which the kernel tells nowhere: measured over a quarter of a second, rounded to a value that
    /// kernels are built with.
    ///
    /// # Errors
    /// As [`CensusProgram::read`].
    pub fn measure_hz(&self) -> Result<u32> {
        let (_, before) = self.pass()?;
        std::thread::sleep(Duration::from_millis(250));
        let (_, after) = self.pass()?;
        let jiffies = u64::from(after.jiffies.wrapping_sub(before.jiffies));
        let rate = jiffies * 1_000_000_000 / after.monotonic.saturating_sub(before.monotonic).max(1);
        Ok([100, 250, 300, 1000].into_iter().min_by_key(|hz: &u32| u64::from(*hz).abs_diff(rate)).unwrap_or(250))
    }

    fn pass(&self) -> Result<(Vec<CensusRow>, Clock)> {
        let fd = sys::map_iterator(self.program.as_fd().as_raw_fd(), self.connections.fd())
            .context("iterating over the socket storage")?;
        let mut bytes = Vec::new();
        File::from(fd).read_to_end(&mut bytes).context("reading the census")?;
        let mut rows: Vec<CensusRow> = bytes
            .chunks_exact(size_of::<CensusRow>())
            // SAFETY: integers and arrays of them, as many bytes as the type has; no alignment is asked for.
            .map(|row| unsafe { std::ptr::read_unaligned(row.as_ptr().cast()) })
            .collect();
        // The last row has no socket: it carries the clocks.
        let last = rows.pop().context("the census ended without its last row")?;
        Ok((rows, Clock { monotonic: last.clock, jiffies: last.now }))
    }
}

/// What no two connected sockets have in common.
fn ends(row: &CensusRow) -> impl Eq + Hash + use<> {
    (row.netns, row.connection.protocol, row.local, row.local_port, row.remote, row.remote_port)
}
