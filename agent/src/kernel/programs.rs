//! What the object is loaded for: the programs of the cgroup, the walks over sockets, the measuring of turn times.

use std::path::Path;

use anyhow::{Context, Result};
use sluice_common::{registry, verdict::Program};

use super::{
    attach::{Attachment, cgroup::Hooks},
    census::CensusProgram,
    drain::Passes,
    object::Object,
    walk::Walk,
};

/// Everything that was loaded, by what it is for. Nothing is attached yet.
pub struct Programs {
    /// Without them nothing is steered.
    pub hooks: Hooks,
    pub turns: Attachment,
    pub keepalive: Attachment,
    pub census: CensusProgram,
    pub passes: Passes,
}

impl Programs {
    /// # Errors
    /// When the kernel refuses a program that the agent cannot do without.
    pub fn load(object: &mut Object, path: &Path) -> Result<Self> {
        let hooks = Hooks::load(object, &Program::ORDER)?;
        let records = object.map(&registry::CONNECTIONS.spec)?;
        let mut walk = |name| Walk::load(object, name, &records, path);
        let (census, tally, survey) = (walk("census")?, walk("tally")?, walk("survey")?);
        if let Walk::Namespaces { .. } = census {
            tracing::warn!("this kernel refuses the iterator over records: sockets are found namespace by namespace");
        }
        let visits = [object.iterator("visit_tcp", "tcp")?, object.iterator("visit_udp", "udp")?];
        let turns = Attachment::tracepoint(object, Program::Turn);
        if let Attachment::Absent(reason) = &turns {
            tracing::info!("turn time cannot be measured: {reason:#}");
        }
        let keepalive = Attachment::tracepoint(object, Program::Keepalive);
        if let Attachment::Absent(reason) = &keepalive {
            tracing::info!("idle connections with keep-alive probes may wait for the end of a drain: {reason:#}");
        }
        Ok(Self {
            hooks,
            turns,
            keepalive,
            census: CensusProgram::new(census, tally),
            passes: Passes::new(object, survey, visits).context("preparing the walks of drains")?,
        })
    }
}
