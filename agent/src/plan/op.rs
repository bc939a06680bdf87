//! One write to the kernel's tables.

use std::fmt;

use sluice_common::{
    drain::Draining,
    tables::{BackendEntry, Counters, Endpoint, TableWord},
    verdict::Program,
};

use crate::model::{BackendId, words::plural};

/// A write that is done or not done, never half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapOp {
    SetNode {
        node: u32,
        closed: u32,
    },
    /// A new entry, or an existing one in which anything but its address may differ.
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
    /// `start`: where `spread` begins on this host.
    BeginService {
        service: u32,
        start: u64,
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

    /// The slots of a table, each with the id of its backend.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn slots(&self, table: TableWord) -> anyhow::Result<Vec<u32>>;

    /// Counters of backends, in the order asked for.
    ///
    /// # Errors
    /// As [`DataPlane::read`].
    fn counters(&self, ids: &[BackendId]) -> anyhow::Result<Vec<Counters>>;

    /// Which table counts: another one counts from 0.
    fn counter_table(&self) -> u32;

    /// Notes that the store holds all of what the tables do, at this revision of its.
    fn saved(&mut self, revision: u64);

    /// CLOCK_MONOTONIC ns: every choice of a backend that begins after this call is counted with this time or a later one.
    fn mark(&self) -> u64;

    /// Programs that should steer and follow connections, and that the kernel does not run.
    fn unattached(&self) -> Vec<Program>;
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

/// What people call the things that a write is about.
pub trait Names {
    fn node(&self, id: u32) -> String {
        format!("node {id}")
    }
    fn service(&self, id: u32) -> String {
        format!("service {id}")
    }
    fn backend(&self, id: u32) -> String {
        format!("backend {id}")
    }
}

/// By their ids.
struct PlainIds;

impl Names for PlainIds {}

impl MapOp {
    /// One line for people.
    pub fn line(&self, names: &impl Names) -> String {
        let state = |closed: u32| if closed == 0 { "open" } else { "closed" };
        let (node, service, backend) =
            (|id: &u32| names.node(*id), |id: &u32| names.service(*id), |id: &u32| names.backend(*id));
        match self {
            Self::SetNode { node: id, closed } => format!("{}: {}", node(id), state(*closed)),
            Self::PutBackend { backend: id, value } => {
                let address = Endpoint::v6(value.address, value.port, 0).socket_addr();
                let on = if value.node == 0 { String::new() } else { format!(" on {}", node(&value.node)) };
                format!("{}: {address}{on}, {}", backend(id), state(value.closed))
            }
            Self::CloseBackend { backend: id, closed } => format!("{}: {}", backend(id), state(*closed)),
            Self::ForgetBackend { backend: id } => format!("{}: forget", backend(id)),
            Self::BeginService { service: id, .. } => format!("{}: begin", service(id)),
            Self::WriteTable { base, entries } => format!("slots {base}..{}: write", *base as usize + entries.len()),
            Self::Flip { service: id, table, .. } => format!(
                "{}: table of {} over {} at {}",
                service(id),
                plural(table.length().into(), "slot"),
                plural(table.distinct().into(), "backend"),
                table.base()
            ),
            Self::ForgetService { service: id } => format!("{}: forget", service(id)),
            Self::PutFrontend { frontend, service: id } => {
                format!("frontend {}: {}", frontend.socket_addr(), service(id))
            }
            Self::RemoveFrontend { frontend } => format!("frontend {}: remove", frontend.socket_addr()),
            Self::SetDraining { backend: id, draining } => match draining {
                Some(Draining { quiet: 0, .. }) => format!("{}: drained, idle connections stay", backend(id)),
                Some(Draining { quiet, .. }) => {
                    format!("{}: drained, connections may be closed after {quiet} ms of quiet", backend(id))
                }
                None => format!("{}: stays", backend(id)),
            },
            Self::SetMeasured { backend: id, measured } => {
                format!("{}: turn times {}", backend(id), if *measured { "measured" } else { "not measured" })
            }
            Self::AddLost { backend: id, established, connecting } => {
                format!("{}: {established} established connections lost, {connecting} on their way", backend(id))
            }
        }
    }
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line(&PlainIds))
    }
}
