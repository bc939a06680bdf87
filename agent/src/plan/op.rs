//! One write to the kernel's tables.

use std::fmt;

use sluice_common::{
    drain::Draining,
    tables::{BackendEntry, Counters, Endpoint, TableWord},
};

use crate::model::BackendId;

/// A write that is done or not done, never half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    SetNode {
        node: u32,
        closed: u32,
    },
    /// A new entry, or another `node` or `closed` in an existing one; never another address.
    PutBackend {
        backend: u32,
        value: BackendEntry,
    },
    CloseBackend {
        backend: u32,
        closed: u32,
    },
    /// Nothing refers to it any more: its counters start anew.
    ForgetBackend {
        backend: u32,
    },
    /// `sequence`: where `spread` begins on this host.
    BeginService {
        service: u32,
        sequence: u64,
    },
    /// Into slots that no current table covers.
    WriteTable {
        base: u32,
        entries: Vec<u32>,
    },
    /// From here on, picks use this table.
    Flip {
        service: u32,
        table: TableWord,
        /// See [`super::service::fingerprint`].
        fingerprint: u64,
    },
    ForgetService {
        service: u32,
    },
    PutFrontend {
        frontend: Endpoint,
        service: u32,
    },
    RemoveFrontend {
        frontend: Endpoint,
    },
    /// Whether the backend's connections are counted and closed because it is drained. First to go when it is not.
    SetDraining {
        backend: u32,
        draining: Option<Draining>,
    },
    /// Whether the turn times of the backend's connections are measured.
    SetMeasured {
        backend: u32,
        measured: bool,
    },
    /// Connections whose end nobody saw: established ones, and ones that were on their way.
    AddLost {
        backend: u32,
        established: u64,
        connecting: u64,
    },
}

/// What carries out the writes: the kernel, or tables in memory.
pub trait DataPlane {
    /// # Errors
    /// The write was not done.
    fn run(&mut self, op: &MapOp) -> anyhow::Result<()>;

    /// Everything that the tables hold.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self) -> anyhow::Result<Entries>;

    /// Counters of backends, in the order asked for.
    ///
    /// # Errors
    /// As [`DataPlane::read`].
    fn counters(&self, ids: &[BackendId]) -> anyhow::Result<Vec<Counters>>;

    /// CLOCK_MONOTONIC ns: every choice of a backend that begins after this call is counted with this time or a later one.
    fn mark(&self) -> u64;
}

/// What the tables hold: occupied entries with their ids.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    pub frontends: Vec<(Endpoint, u32)>,
    /// With the fingerprint of the table that is in force.
    pub services: Vec<(u32, TableWord, u64)>,
    pub backends: Vec<(u32, BackendEntry)>,
    /// Closed nodes, with the reasons.
    pub nodes: Vec<(u32, u32)>,
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = |closed: u32| if closed == 0 { "open" } else { "closed" };
        match self {
            Self::SetNode { node, closed } => write!(f, "node {node}: {}", state(*closed)),
            Self::PutBackend { backend, value } => {
                let address = Endpoint::v6(value.address, value.port, 0).socket_addr();
                write!(f, "backend {backend}: {address} on node {}, {}", value.node, state(value.closed))
            }
            Self::CloseBackend { backend, closed } => write!(f, "backend {backend}: {}", state(*closed)),
            Self::ForgetBackend { backend } => write!(f, "backend {backend}: forget"),
            Self::BeginService { service, .. } => write!(f, "service {service}: begin"),
            Self::WriteTable { base, entries } => write!(f, "slots {base}..{}: write", *base as usize + entries.len()),
            Self::Flip { service, table, .. } => write!(
                f,
                "service {service}: table of {} slots over {} backends at {}",
                table.length(),
                table.distinct(),
                table.base()
            ),
            Self::ForgetService { service } => write!(f, "service {service}: forget"),
            Self::PutFrontend { frontend, service } => {
                write!(f, "frontend {}: service {service}", frontend.socket_addr())
            }
            Self::RemoveFrontend { frontend } => write!(f, "frontend {}: remove", frontend.socket_addr()),
            Self::SetDraining { backend, draining: Some(Draining { quiet: 0, .. }) } => {
                write!(f, "backend {backend}: draining, idle connections stay")
            }
            Self::SetDraining { backend, draining: Some(Draining { quiet, .. }) } => {
                write!(f, "backend {backend}: draining, connections may be closed after {quiet} ms of quiet")
            }
            Self::SetDraining { backend, draining: None } => write!(f, "backend {backend}: stays"),
            Self::SetMeasured { backend, measured } => {
                write!(f, "backend {backend}: turn times {}", if *measured { "measured" } else { "not measured" })
            }
            Self::AddLost { backend, established, connecting } => {
                write!(f, "backend {backend}: {established} established connections lost, {connecting} on their way")
            }
        }
    }
}
