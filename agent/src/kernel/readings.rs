//! What can be read from the kernel by anybody, at any time: the seam between those who report and the tables.

use std::collections::BTreeMap;

use anyhow::Result;
use sluice_common::{
    streak::{FailureStreak, Turns},
    tables::Counters,
    verdict::{Program, Verdict},
};

use super::sockets::Census;
use crate::model::{BackendId, ServiceId};

/// Reads that change nothing and wait for nobody. The tables in the kernel do it; tests have a few numbers instead.
pub trait Readings: Send + Sync + 'static {
    /// Counters of backends, in the order asked for. Cheapest when the ids ascend.
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
    fn streaks(&self, ids: &[BackendId]) -> Vec<FailureStreak>;

    /// Turn times measured since this agent started, in the order asked for. A connection that was there when measuring
    /// began may add one that is too short: what it was in the middle of.
    fn turns(&self, ids: &[BackendId]) -> Vec<Turns>;

    /// Signals that found no room since this agent started: what they would have said is in the streaks.
    fn signals_lost(&self) -> u64;

    /// Every verdict that was reached at least once.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>>;

    /// What connect() would choose now for this draw: [`sluice_common::pick`] run on the kernel's own tables.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn pick(&self, service: ServiceId, draw: u64) -> Result<Option<BackendId>>;

    /// Every steered socket, in all network namespaces. May take a while: not for a thread that others wait for.
    ///
    /// # Errors
    /// When the kernel cannot iterate over socket storage.
    fn census(&self) -> Result<Census>;

    /// How many flows of unconnected datagram sockets stay with each backend. Takes some milliseconds when there are many.
    ///
    /// # Errors
    /// When the table cannot be read.
    fn flows(&self) -> Result<BTreeMap<BackendId, u64>>;
}
