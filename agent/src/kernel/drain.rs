//! Passes over the connections of draining backends: count them, and close what may be closed.
//!
//! The tables of a pass belong to the one thread that makes it. What may be closed at all is in DRAINING, which only the
//! owner of the tables writes.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use sluice_common::{
    drain::{Draining, Inbound, NamespaceEntry, PING_PONG, Remains},
    ending::EndingRow,
    registry::{CALLERS, DRAINING, ENDED, INBOUND, NAMESPACES, REMAINS},
    tables::Endpoint,
};

use super::{
    object::Object,
    sys::{self, Hash},
    walk::Walk,
};
use crate::model::BackendId;

/// The iterators with their tables.
pub struct Passes {
    draining: Hash<u32, Draining>,
    remains: Hash<u32, Remains>,
    inbound: Hash<Endpoint, Inbound>,
    namespaces: Hash<u64, NamespaceEntry>,
    callers: Hash<Endpoint, u32>,
    ended: Hash<u64, u32>,
    survey: Walk,
    tcp: OwnedFd,
    udp: OwnedFd,
    can_destroy: bool,
    remembers: bool,
}

impl Passes {
    pub(super) fn new(object: &Object, survey: Walk, visits: [ProgramFd; 2]) -> Result<Self> {
        let [tcp, udp] = visits;
        let link = |program: ProgramFd| {
            sys::iterator_link(program.as_fd().as_raw_fd(), None).context("preparing a walk over sockets")
        };
        Ok(Self {
            draining: object.hash(&DRAINING)?,
            remains: object.hash(&REMAINS)?,
            inbound: object.hash(&INBOUND)?,
            namespaces: object.hash(&NAMESPACES)?,
            callers: object.hash(&CALLERS)?,
            ended: object.hash(&ENDED)?,
            survey,
            tcp: link(tcp)?,
            udp: link(udp)?,
            can_destroy: object.can_destroy(),
            remembers: false,
        })
    }

    /// Whether a visit closes under the socket's lock (Linux 6.5 and later); otherwise it only counts.
    pub fn can_destroy(&self) -> bool {
        self.can_destroy
    }

    /// From here on a program looks before each keep-alive probe.
    pub(super) fn remember(&mut self) {
        self.remembers = true;
    }

    /// What passes on this kernel go by besides what they may do, as in `Remains::allowed`.
    pub fn goes_by(&self) -> u32 {
        if self.remembers { 0 } else { PING_PONG }
    }

    /// Makes the entries of a pass; nothing is counted in `entry` yet.
    ///
    /// # Errors
    /// When the kernel has no memory for them.
    pub fn begin(&self, backend: BackendId, entry: &Remains) -> Result<()> {
        self.remains.put(&backend.0, entry).context("preparing a pass")
    }

    /// The same for the accepting side; nothing is counted in `entry` yet.
    ///
    /// # Errors
    /// As [`Passes::begin`].
    pub fn begin_inbound(&self, address: &Endpoint, entry: &Inbound) -> Result<()> {
        self.inbound.put(address, entry).context("preparing a pass")
    }

    /// Whether its connections may be closed at this moment, just so.
    pub fn is_leaving(&self, backend: BackendId, draining: Draining) -> bool {
        self.draining.get(&backend.0).is_ok_and(|found| found == Some(draining))
    }

    /// Counts the steered connections of draining backends on the whole host. Returns the network namespaces that have
    /// something to close, by their cookies.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn survey(&self) -> Result<Vec<(u64, NamespaceEntry)>> {
        for (netns, _) in self.namespaces.entries().context("reading NAMESPACES")? {
            self.namespaces.remove(&netns).context("clearing NAMESPACES")?;
        }
        for (caller, _) in self.callers.entries().context("reading CALLERS")? {
            self.callers.remove(&caller).context("clearing CALLERS")?;
        }
        self.survey.run().context("counting the connections of draining backends")?;
        self.namespaces.entries().context("reading NAMESPACES")
    }

    /// Walks the sockets of the network namespace that this thread is in: closes what may be closed, and counts what
    /// local backends have accepted. `end` gets each connection that is to end as its peer would end it, as soon as it is
    /// found.
    ///
    /// # Errors
    /// When the kernel refuses the walk.
    pub fn visit(&self, end: impl FnMut(&EndingRow)) -> Result<()> {
        // SAFETY: `visit_tcp` writes these rows and nothing else.
        unsafe { sys::follow_iterator(&self.tcp, end) }.context("walking the TCP sockets of a namespace")?;
        sys::run_iterator(&self.udp).map(drop).context("walking the UDP sockets of a namespace")
    }

    /// Keeps what came of ending a connection, [`sluice_common::ending::OVER`] or another, until it is forgotten.
    ///
    /// # Errors
    /// When there is no room.
    pub fn note_ended(&self, cookie: u64, how: u32) -> Result<()> {
        self.ended.put(&cookie, &how).context("writing ENDED")
    }

    /// Forgets what came of ending a connection.
    pub fn forget_ended(&self, cookie: u64) {
        // What is not there needs no dropping.
        let _ = self.ended.remove(&cookie);
    }

    /// What the pass found of a backend.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn remains(&self, backend: BackendId) -> Result<Remains> {
        Ok(self.remains.get(&backend.0).context("reading REMAINS")?.unwrap_or_default())
    }

    /// What the pass found on the accepting side.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn inbound(&self, address: &Endpoint) -> Result<Inbound> {
        Ok(self.inbound.get(address).context("reading INBOUND")?.unwrap_or_default())
    }

    /// How many connections the pass has found so far that these addresses have accepted.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn accepted<'a>(&self, addresses: impl IntoIterator<Item = &'a Endpoint>) -> Result<u64> {
        addresses
            .into_iter()
            .map(|address| self.inbound(address).map(|found| u64::from(found.in_flight + found.idle)))
            .sum()
    }

    /// Drops the entries of what is no longer looked at.
    pub fn forget(&self, backends: &[BackendId], addresses: &[Endpoint]) {
        // What is not there needs no dropping.
        for backend in backends {
            let _ = self.remains.remove(&backend.0);
        }
        for address in addresses {
            let _ = self.inbound.remove(address);
        }
    }
}
