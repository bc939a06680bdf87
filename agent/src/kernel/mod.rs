//! The only owner of maps, programs, links and pins.

use sluice_common::{
    tables::Counters,
    verdict::{Program, Verdict},
};

use crate::model::{BackendId, ServiceId};

/// Read-only view of the counters and tables, for readers on any thread.
pub struct Meters;

impl Meters {
    /// Counters of backends, in the order asked for.
    pub fn counters(&self, ids: &[BackendId]) -> anyhow::Result<Vec<Counters>> {
        let _ = ids;
        unimplemented!()
    }
    /// Connections and datagrams of a service that found no open backend.
    pub fn no_backend(&self, service: ServiceId) -> anyhow::Result<u64> {
        let _ = service;
        unimplemented!()
    }
    /// Every verdict that was reached at least once.
    pub fn verdicts(&self) -> anyhow::Result<Vec<(Program, Verdict, u64)>> {
        unimplemented!()
    }
    /// What connect() would choose now for this draw: `common::pick` run on the kernel's own tables.
    pub fn pick(&self, service: ServiceId, draw: u64) -> anyhow::Result<Option<BackendId>> {
        let _ = (service, draw);
        unimplemented!()
    }
    /// Every steered socket of the host.
    pub fn census(&self) -> anyhow::Result<crate::observe::census::Census> {
        unimplemented!()
    }
}
