//! Decisions of the programs with names: what `sluice monitor` shows, and which of them somebody wants to see.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::{
    decision::{
        BY_CGROUP, BY_FRONTEND, BY_PID, BY_SERVICE, DecisionFilter, DecisionRecord, FOREIGN, NODE, NONE, WANTED,
    },
    tables::{CLOSED_EJECTED, CLOSED_REMOVED, CLOSED_UNREADY, CLOSED_ZERO, Endpoint, TCP, UDP},
    verdict::{Program, Verdict},
};
use utoipa::ToSchema;

use crate::{
    host::{cgroups, clock},
    model::{BackendId, Frontend, Name, Protocol, Service, ServiceId, State},
    view::published::Published,
};

/// Backends that are named of those that a decision passed over.
const NAMED: usize = 8;
/// Cgroups whose names are remembered.
const CGROUPS: usize = 4096;

/// What a watcher is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
// Shared by all who watch: what the small one wastes is wasted once.
#[allow(clippy::large_enum_variant)]
pub enum Told {
    Decision(Decision),
    Lost(LostDecisions),
}

/// Decisions that this watcher was not told of: they came faster than they were taken, or from a cgroup that was gone before
/// anybody could see where it belonged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LostDecisions {
    pub lost: u64,
}

/// One call to a frontend, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    pub time: Timestamp,
    /// The program that decided: `connect4`, `connect6`, `sendmsg4` or `sendmsg6`.
    pub call: String,
    pub pid: u32,
    /// Name of the thread that called.
    pub command: String,
    /// Its cgroup, as /proc/PID/cgroup has it; absent when that is gone.
    pub cgroup: Option<String>,
    pub cgroup_id: u64,
    /// What the application asked for: `IP:PORT` for TCP, `IP:PORT/udp`, or with the number of another protocol.
    pub frontend: String,
    /// As in the metric `sluice_verdicts_total`.
    pub verdict: String,
    /// Absent when the address is no frontend, or when the service has left the configuration.
    pub service: Option<Name>,
    /// Where the call went; absent when it went nowhere or to the original address.
    pub backend: Option<Name>,
    pub node: Option<Name>,
    #[schema(value_type = Option<String>)]
    pub backend_address: Option<SocketAddr>,
    /// How many backends of the service were passed over.
    pub skipped: usize,
    /// The first of them. What the choice itself came across stands before what was not in the table to begin with.
    pub skipped_backends: Vec<Skipped>,
}

/// A backend that was passed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Skipped {
    /// Absent when it has left the configuration.
    pub backend: Option<Name>,
    pub node: Option<Name>,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Why {
    Zeroed,
    NodeZeroed,
    WeightZero,
    Removed,
    NotReady,
    Ejected,
    /// The caller's socket cannot speak with it.
    OtherFamily,
}

/// What somebody wants to see; what is not set does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MonitorFilter {
    pub service: Option<String>,
    pub frontend: Option<Frontend>,
    pub pid: Option<u32>,
    /// Id and name. The cgroups in it count too.
    pub cgroup: Option<(u64, String)>,
    /// Calls to addresses that are no frontend too.
    pub all: bool,
}

impl Why {
    /// In words.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Zeroed => "zeroed",
            Self::NodeZeroed => "node zeroed",
            Self::WeightZero => "weight 0",
            Self::Removed => "removed",
            Self::NotReady => "not ready",
            Self::Ejected => "ejected",
            Self::OtherFamily => "other family",
        }
    }

    /// What the bits of a closed backend say.
    const fn of_bits(bits: u32) -> Self {
        if bits & NODE != 0 {
            Self::NodeZeroed
        } else if bits & CLOSED_ZERO != 0 {
            Self::Zeroed
        } else if bits & CLOSED_REMOVED != 0 {
            Self::Removed
        } else if bits & CLOSED_EJECTED != 0 {
            Self::Ejected
        } else if bits & CLOSED_UNREADY != 0 {
            Self::NotReady
        } else {
            // CLOSED_WEIGHT is the one that is left.
            Self::WeightZero
        }
    }
}

impl MonitorFilter {
    /// The same for the programs. The id of a service changes when it is deleted and made anew.
    pub fn for_kernel(&self, state: &State) -> DecisionFilter {
        let mut filter = DecisionFilter::ON;
        if let Some(name) = &self.service {
            filter.asked |= BY_SERVICE;
            filter.service_id = state.service(name).map_or(NONE, |service| service.id.0);
        } else if self.all {
            filter.asked |= FOREIGN;
        }
        if let Some(frontend) = &self.frontend {
            filter.asked |= BY_FRONTEND;
            filter.frontend = Endpoint::new(frontend.address, number(frontend.protocol));
        }
        if let Some(pid) = self.pid {
            filter.asked |= BY_PID;
            filter.pid = pid;
        }
        if let Some((id, _)) = &self.cgroup {
            filter.asked |= BY_CGROUP;
            filter.cgroup = *id;
        }
        filter
    }

    /// Whether a decision that the programs told, for this watcher or another, is wanted here. `asked`: what the kernel let
    /// through. `cgroup`: name of the caller's; when that is gone, nobody may be able to say (`None`).
    pub fn fits(
        &self,
        own: &DecisionFilter,
        asked: &DecisionFilter,
        told: &DecisionRecord,
        cgroup: Option<&str>,
    ) -> Option<bool> {
        let fits = (told.service_id != NONE || own.asks(FOREIGN))
            && (!own.asks(BY_SERVICE) || own.service_id == told.service_id)
            && (!own.asks(BY_FRONTEND) || own.frontend == told.frontend)
            && (!own.asks(BY_PID) || own.pid == told.pid)
            && own.asks(WANTED);
        match &self.cgroup {
            Some((id, name)) if fits && told.cgroup != *id && !(asked.asks(BY_CGROUP) && asked.cgroup == *id) => {
                let below = cgroup?.strip_prefix(name.trim_end_matches('/'));
                Some(below.is_some_and(|below| below.starts_with('/')))
            }
            _ => Some(fits),
        }
    }
}

/// The names behind the ids, as they are published now.
pub struct DecisionNames {
    published: Arc<Published>,
    /// Backends that take no connection, by service.
    out: HashMap<ServiceId, Arc<[(BackendId, Skipped)]>>,
    cgroups: HashMap<u64, Option<Arc<str>>>,
}

impl DecisionNames {
    pub fn new(published: Arc<Published>) -> Self {
        Self { published, out: HashMap::new(), cgroups: HashMap::new() }
    }

    pub fn refresh(&mut self, published: Arc<Published>) {
        if !Arc::ptr_eq(&self.published, &published) {
            self.published = published;
            self.out.clear();
        }
    }

    pub fn state(&self) -> &State {
        &self.published.state
    }

    /// The cgroup with this id, which this process is in or was.
    pub fn cgroup(&mut self, id: u64, pid: u32) -> Option<Arc<str>> {
        if self.cgroups.len() > CGROUPS {
            self.cgroups.clear();
        }
        self.cgroups.entry(id).or_insert_with(|| cgroups::name_of(id, pid).map(Arc::from)).clone()
    }

    /// `None` for a decision of another version.
    pub fn decision(&mut self, told: &DecisionRecord) -> Option<Decision> {
        let program = Program::ALL.get(told.program as usize)?;
        let verdict = *Verdict::ALL.get(told.verdict as usize)?;
        let cgroup = self.cgroup(told.cgroup, told.pid);
        let (skipped, skipped_backends) = self.skipped(told, verdict);
        let state = self.state();
        let service = state.service_by_id(ServiceId(told.service_id));
        let reached = told.backend_id != NONE && verdict != Verdict::Broken;
        let backend = reached.then(|| state.backend(BackendId(told.backend_id))).flatten();
        let command = told.command.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Decision {
            time: clock::wall(told.time),
            call: program.name().to_owned(),
            pid: told.pid,
            command: String::from_utf8_lossy(command).into_owned(),
            cgroup: cgroup.map(|name| name.to_string()),
            cgroup_id: told.cgroup,
            frontend: frontend(&told.frontend),
            verdict: verdict.name().to_owned(),
            service: service.map(|service| service.name.clone()),
            backend: backend.map(|(_, backend)| backend.name.clone()),
            node: backend.and_then(|(_, backend)| state.node_by_id(backend.node)).map(|node| node.name.clone()),
            backend_address: reached.then(|| told.backend.socket_addr()),
            skipped,
            skipped_backends,
        })
    }

    /// Who was passed over: how many, and the first of them.
    fn skipped(&mut self, told: &DecisionRecord, verdict: Verdict) -> (usize, Vec<Skipped>) {
        let mut found: Vec<(BackendId, Skipped)> = Vec::new();
        for skipped in told.skipped.iter().take(told.skips as usize) {
            self.pass_over(&mut found, skipped.backend_id, Why::of_bits(skipped.why));
        }
        let mut total = found.len();
        match verdict {
            Verdict::Broken if told.backend_id != NONE => {
                self.pass_over(&mut found, told.backend_id, Why::OtherFamily);
                total = found.len();
            }
            Verdict::Steered | Verdict::SteeredUntracked | Verdict::Refused | Verdict::Passed => {
                let out = self.out(ServiceId(told.service_id));
                let more =
                    out.iter().filter(|(id, _)| id.0 != told.backend_id && !found.iter().any(|(found, _)| found == id));
                let more: Vec<_> = more.collect();
                total += more.len();
                let room = NAMED.saturating_sub(found.len());
                let named: Vec<_> = more.into_iter().take(room).cloned().collect();
                found.extend(named);
            }
            Verdict::NotOurs
            | Verdict::Kept
            | Verdict::Marked
            | Verdict::Broken
            | Verdict::Translated
            | Verdict::Stale
            | Verdict::Opened
            | Verdict::Established
            | Verdict::Failed
            | Verdict::Closed
            | Verdict::Retransmitted
            | Verdict::Recovered => {}
        }
        (total, found.into_iter().take(NAMED).map(|(_, skipped)| skipped).collect())
    }

    fn pass_over(&self, found: &mut Vec<(BackendId, Skipped)>, id: u32, why: Why) {
        let id = BackendId(id);
        if found.iter().any(|(other, _)| *other == id) {
            return;
        }
        let state = self.state();
        let backend = state.backend(id).map(|(_, backend)| backend);
        let node = backend.and_then(|backend| state.node_by_id(backend.node)).map(|node| node.name.clone());
        found.push((id, Skipped { backend: backend.map(|backend| backend.name.clone()), node, why }));
    }

    /// Backends of a service that are out of its table.
    fn out(&mut self, service: ServiceId) -> Arc<[(BackendId, Skipped)]> {
        let published = &self.published;
        let look = || published.state.service_by_id(service).map_or_else(Vec::new, |s| out(&published.state, s)).into();
        self.out.entry(service).or_insert_with(look).clone()
    }
}

fn out(state: &State, service: &Service) -> Vec<(BackendId, Skipped)> {
    let panics = state.panics(service);
    let backends = service.backends.iter().filter_map(|backend| {
        let node = state.node_by_id(backend.node);
        let why = if backend.zero.is_some() {
            Why::Zeroed
        } else if node.is_some_and(|node| node.zero.is_some()) {
            Why::NodeZeroed
        } else if backend.weight == 0 || service.groups.get(backend.group as usize).is_some_and(|g| g.weight == 0) {
            Why::WeightZero
        } else if backend.is_fit(panics) {
            return None;
        } else if backend.health.as_ref().is_some_and(|health| health.is_ejected()) {
            Why::Ejected
        } else {
            Why::NotReady
        };
        let skipped = Skipped { backend: Some(backend.name.clone()), node: node.map(|node| node.name.clone()), why };
        Some((backend.id, skipped))
    });
    backends.collect()
}

fn frontend(asked: &Endpoint) -> String {
    let address = asked.socket_addr();
    match asked.protocol {
        TCP => address.to_string(),
        UDP => format!("{address}/udp"),
        other => format!("{address}/{other}"),
    }
}

const fn number(protocol: Protocol) -> u16 {
    match protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    }
}
