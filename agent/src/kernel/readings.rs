//! What can be read from the kernel by anybody, at any time: the seam between those who report and the tables.

use anyhow::Result;
use sluice_common::{
    tables::Counters,
    verdict::{Program, Verdict},
    watch::{Turns, Watch},
};

use super::sockets::Census;
use crate::{
    kernel::Meters,
    model::{BackendId, ServiceId},
};

/// Reads that change nothing and wait for nobody. The tables in the kernel do it; tests have a few numbers instead.
pub trait Readings: Send + Sync + 'static {
    /// Counters of backends, in the order asked for.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>>;

    /// Connections and datagrams of a service that found no open backend.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn no_backend(&self, service: ServiceId) -> Result<u64>;

    /// Streaks and totals of backends that the programs keep beside the counters, in the order asked for.
    fn watches(&self, ids: &[BackendId]) -> Vec<Watch>;

    /// Turn times of backends, in the order asked for.
    fn turns(&self, ids: &[BackendId]) -> Vec<Turns>;

    /// Signals that found no room.
    fn signals_lost(&self) -> u64;

    /// Every verdict that was reached at least once.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>>;

    /// What connect() would choose now for this draw.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn pick(&self, service: ServiceId, draw: u64) -> Result<Option<BackendId>>;

    /// Every steered socket, in all network namespaces. May take a while: not for a thread that others wait for.
    ///
    /// # Errors
    /// When the kernel cannot iterate over socket storage.
    fn census(&self) -> Result<Census>;
}

impl Readings for Meters {
    fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>> {
        Self::counters(self, ids)
    }

    fn no_backend(&self, service: ServiceId) -> Result<u64> {
        Self::no_backend(self, service)
    }

    fn watches(&self, ids: &[BackendId]) -> Vec<Watch> {
        Self::watches(self, ids)
    }

    fn turns(&self, ids: &[BackendId]) -> Vec<Turns> {
        Self::turns(self, ids)
    }

    fn signals_lost(&self) -> u64 {
        Self::signals_lost(self)
    }

    fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>> {
        Self::verdicts(self)
    }

    fn pick(&self, service: ServiceId, draw: u64) -> Result<Option<BackendId>> {
        Self::pick(self, service, draw)
    }

    fn census(&self) -> Result<Census> {
        Self::census(self)
    }
}
