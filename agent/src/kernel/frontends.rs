//! FRONTENDS with the filter before it: a set bit for every frontend, and for none that is not there.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use anyhow::{Context, Result};
use sluice_common::tables::{Endpoint, FILTER_ENTRIES};

use super::{memory::Tables, sys::Map};

/// The only writer of both tables. A bit is set before its frontend is there and cleared after the last one of its
/// kind is gone, so that at every instant a clear bit tells the truth.
pub struct Frontends {
    map: Map,
    tables: Arc<Tables>,
    held: HashSet<Endpoint>,
    /// Frontends of each bit that is set.
    bits: HashMap<u32, u32>,
}

impl Frontends {
    /// Takes over what the tables hold, and makes the filter fit.
    pub fn adopt(map: Map, tables: Arc<Tables>) -> Result<Self> {
        let mut frontends = Self { map, tables, held: HashSet::new(), bits: HashMap::new() };
        for (frontend, _) in frontends.entries()? {
            frontends.note(&frontend);
        }
        for entry in 0..FILTER_ENTRIES {
            frontends.tables.set_filter(entry, frontends.word(entry))?;
        }
        Ok(frontends)
    }

    /// Frontends with their services.
    pub fn entries(&self) -> Result<Vec<(Endpoint, u32)>> {
        self.map.entries().context("reading FRONTENDS")
    }

    pub fn put(&mut self, frontend: &Endpoint, service: u32) -> Result<()> {
        let is_new = self.note(frontend);
        let entry = frontend.filter_bit() / 64;
        self.tables.set_filter(entry, self.word(entry))?;
        let put = self.map.put(frontend, &service);
        if put.is_err() && is_new {
            self.forget(frontend)?;
        }
        put.map_err(|error| match error.raw_os_error() {
            Some(libc::E2BIG) => anyhow::anyhow!(
                "FRONTENDS is full: run the agent with a larger --max-frontends (after `sluice uninstall --keep-state`)"
            ),
            _ => anyhow::Error::new(error).context("writing FRONTENDS"),
        })
    }

    pub fn remove(&mut self, frontend: &Endpoint) -> Result<()> {
        match self.map.remove(frontend) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                Err(error).context("removing an entry of FRONTENDS")
            }
            _ => self.forget(frontend),
        }
    }

    /// Counts a frontend; `false`: it was there.
    fn note(&mut self, frontend: &Endpoint) -> bool {
        let is_new = self.held.insert(*frontend);
        if is_new {
            *self.bits.entry(frontend.filter_bit()).or_default() += 1;
        }
        is_new
    }

    fn forget(&mut self, frontend: &Endpoint) -> Result<()> {
        if !self.held.remove(frontend) {
            return Ok(());
        }
        let bit = frontend.filter_bit();
        if let Some(count) = self.bits.get_mut(&bit) {
            *count -= 1;
            if *count == 0 {
                self.bits.remove(&bit);
            }
        }
        self.tables.set_filter(bit / 64, self.word(bit / 64))
    }

    /// What 64 bits of the filter should be.
    fn word(&self, entry: u32) -> u64 {
        (0..64).filter(|bit| self.bits.contains_key(&(entry * 64 + bit))).fold(0, |word, bit| word | 1 << bit)
    }
}
