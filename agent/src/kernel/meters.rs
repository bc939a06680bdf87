//! Read-only view of the counters and tables, for readers on any thread.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use sluice_common::{
    pick,
    streak::{FailureStreak, Turns},
    tables::{BackendEntry, CLOSED_REMOVED, Counters},
    verdict::{self, Program, Verdict},
};

use super::{
    census::CensusProgram, flows::FlowTable, memory::MappedTables, ring::Losses, streaks::StreakTable, turns::TurnTable,
};
use crate::{
    kernel::{gauges, readings::Readings, sockets::Census},
    model::{BackendId, ServiceId},
};

/// Reads what the kernel counts. Nothing here can change it.
pub struct Meters {
    tables: Arc<MappedTables>,
    census: CensusProgram,
    streaks: StreakTable,
    lost: Losses,
    turns: TurnTable,
    flows: FlowTable,
    /// TALLY is for one at a time.
    tally: Mutex<()>,
}

impl Meters {
    pub(super) fn new(
        tables: Arc<MappedTables>,
        census: CensusProgram,
        streaks: StreakTable,
        lost: Losses,
        turns: TurnTable,
        flows: FlowTable,
    ) -> Self {
        Self { tables, census, streaks, lost, turns, flows, tally: Mutex::default() }
    }

    /// Picks take exact times for a while from the returned time of CLOCK_MONOTONIC, ns, on.
    pub fn begin_exact_times(&self) -> u64 {
        self.tables.begin_exact_times()
    }

    /// Backends that have connections, with their counters, in the order of ids.
    ///
    /// # Errors
    /// When the table cannot be mapped.
    pub fn in_use(&self) -> Result<Vec<(BackendId, Counters)>> {
        let ids: Vec<u32> = self.tables.backends().into_iter().map(|(id, _)| id).collect();
        let counters = self.tables.counters(ids.iter().copied())?;
        let all = ids.into_iter().map(BackendId).zip(counters);
        Ok(all.filter(|(_, counters)| gauges::open(counters) != 0).collect())
    }

    /// Backends that have left the configuration, and whose ids are not free yet: those whose services kept no flows, and
    /// all of them.
    pub fn removed(&self) -> (Vec<BackendId>, Vec<BackendId>) {
        let removed = self.tables.backends().into_iter().filter(|(_, backend)| backend.closed & CLOSED_REMOVED != 0);
        let removed: Vec<_> = removed.collect();
        let keepers = removed.iter().filter(|(_, backend)| backend.keeps_flows == 0);
        (keepers.map(|(id, _)| BackendId(*id)).collect(), removed.iter().map(|(id, _)| BackendId(*id)).collect())
    }

    /// Removes the flows of backends that take nothing any more: their answers are shown as they are.
    ///
    /// # Errors
    /// When the table cannot be read or written.
    pub fn forget_flows(&self, backends: &[BackendId]) -> Result<()> {
        self.flows.forget(backends)
    }

    /// Counts the connections that there are now and are older than this call, for each of the backends: those on their
    /// way, and established ones.
    ///
    /// # Errors
    /// When the kernel refuses the iterator.
    pub fn tally(&self, ids: &[BackendId]) -> Result<Vec<(u64, u64)>> {
        let _guard = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        self.tables.begin_tally()?;
        self.census.tally()?;
        self.tables.tally(ids.iter().map(|id| id.0))
    }
}

impl Readings for Meters {
    fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>> {
        self.tables.counters(ids.iter().map(|id| id.0))
    }

    fn no_backend(&self, service: ServiceId) -> Result<u64> {
        Ok(self.tables.no_backend(service.0).unwrap_or(0))
    }

    fn streaks(&self, ids: &[BackendId]) -> Vec<FailureStreak> {
        ids.iter().map(|id| self.streaks.read(*id)).collect()
    }

    fn turns(&self, ids: &[BackendId]) -> Vec<Turns> {
        ids.iter().map(|id| self.turns.read(*id)).collect()
    }

    fn signals_lost(&self) -> u64 {
        self.lost.count()
    }

    fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>> {
        let mut found = Vec::new();
        for &program in Program::ALL {
            for &verdict in Verdict::ALL {
                let count = self.tables.verdict(verdict::index(program, verdict))?;
                if count != 0 {
                    found.push((program, verdict, count));
                }
            }
        }
        Ok(found)
    }

    fn pick(&self, service: ServiceId, draw: u64) -> Result<Option<BackendId>> {
        let Some(table) = self.tables.table(service.0).filter(|table| table.present()) else {
            return Ok(None);
        };
        let slots = self.tables.slots(table.base(), table.length() + table.distinct())?;
        let view = TableCopy { tables: &self.tables, base: table.base(), slots };
        Ok(pick::pick(&view, table, draw).map(|(id, _)| BackendId(id)))
    }

    fn census(&self) -> Result<Census> {
        self.census.read()
    }

    fn flows(&self) -> Result<BTreeMap<BackendId, u64>> {
        self.flows.in_use()
    }
}

/// One service's table, copied, with the entries it leads to.
struct TableCopy<'a> {
    tables: &'a MappedTables,
    base: u32,
    slots: Vec<u32>,
}

impl pick::Tables for TableCopy<'_> {
    type Entry = BackendEntry;

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(index.checked_sub(self.base)? as usize).copied()
    }
    fn backend(&self, id: u32) -> Option<BackendEntry> {
        self.tables.backend(id)
    }
    fn node_closed(&self, id: u32) -> u32 {
        self.tables.node_closed(id)
    }
}
