//! Tables changed behind the agent's back, to see whether it notices.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use sluice_common::{
    flows::{Flow, FlowKey},
    tables::{BackendEntry, Counters, Endpoint, Meta, TCP},
};
use sluice_tests::{Agent, pins};

/// Ids in use are small in a test.
const IDS: u32 = 256;

fn map(agent: &Agent, name: &str) -> PathBuf {
    agent.bpffs().join("maps").join(name)
}

/// Changes the kernel's counters of the backend with this address. What the kernel counts at the same time is lost.
pub fn counters(agent: &Agent, address: &str, change: impl FnOnce(&mut Counters)) -> Result<()> {
    pins::change(&map(agent, "COUNTERS"), backend_id(agent, address)?, change)
}

/// The id that the tables have for the backend with this address.
pub fn backend_id(agent: &Agent, address: &str) -> Result<u32> {
    let wanted = Endpoint::new(address.parse()?, TCP);
    let found = pins::find::<BackendEntry>(&map(agent, "BACKENDS"), IDS, |backend| {
        backend.address == wanted.address && backend.port == wanted.port
    });
    Ok(found.with_context(|| format!("looking for the backend {address}"))?.0)
}

/// Changes what the tables say about who made them.
pub fn meta(agent: &Agent, change: impl FnOnce(&mut Meta)) -> Result<()> {
    pins::change(&map(agent, "META"), 0, change)
}

/// Makes every datagram of a flow so much older: as if nobody had sent or received since.
pub fn age_flows(agent: &Agent, by: Duration) -> Result<()> {
    let by = u64::try_from(by.as_nanos())?;
    pins::change_all::<FlowKey, Flow>(&map(agent, "FLOWS"), |_, flow| flow.last = flow.last.saturating_sub(by))
}

/// As [`age_flows`], but answers have come all the time.
pub fn age_senders(agent: &Agent, by: Duration) -> Result<()> {
    let by = u64::try_from(by.as_nanos())?;
    pins::change_all::<FlowKey, Flow>(&map(agent, "FLOWS"), |key, flow| {
        if key.answer == 0 {
            flow.last = flow.last.saturating_sub(by);
        }
    })
}
