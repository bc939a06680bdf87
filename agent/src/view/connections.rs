//! The steered connections of a census, with names and processes.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    net::SocketAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sluice_common::{
    drain::{DEFAULT_QUIET, patience},
    flight::Side,
    opening::Session,
    records::CensusRow,
    tables::{UDP, socket_addr},
};
use utoipa::ToSchema;

use crate::model::{BackendId, Name, Protocol, Service, ServiceProtocol, State, UsualPort};
use crate::{host::cgroups, kernel::sockets::Census};

/// A steered socket.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connection {
    /// Absent when the service has left the configuration.
    pub service: Option<Name>,
    /// Absent when the backend has left the configuration.
    pub backend: Option<Name>,
    pub node: Option<Name>,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// What the application asked for.
    #[schema(value_type = String)]
    pub frontend: SocketAddr,
    /// Where it was sent.
    #[schema(value_type = String)]
    pub backend_address: SocketAddr,
    #[schema(value_type = String)]
    pub local_address: SocketAddr,
    pub state: SocketState,
    /// The process that called connect().
    pub pid: u32,
    /// Its command; absent when the process is gone or in a place that the agent cannot see.
    pub command: Option<String>,
    /// Its cgroup, as /proc/PID/cgroup has it.
    pub cgroup: Option<String>,
    /// UID of its Kubernetes pod, where the name of the cgroup tells.
    pub pod: Option<String>,
    /// Cookie of its network namespace.
    pub netns: u64,
    /// Since the connection was established, or since the call while it is not.
    pub age_seconds: f64,
    /// Since data last went either way; absent while there is no connection yet, and for datagrams, whose sockets do
    /// not tell.
    pub idle_seconds: Option<f64>,
    /// Whether a request is out, or an answer not read; absent for datagrams.
    pub in_flight: Option<bool>,
    /// Why a drain does not close it for being idle; absent when it may, and for datagrams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionKind>,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// What speaks for a session in which quiet does not mean that nothing is under way. Nothing does when the service says
/// `protocol: request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SessionKind {
    /// The service says `protocol: stream`.
    Stream,
    /// The port of a frontend or of the backend is usually that of a database, SSH or the like.
    UsualPort,
    /// The server spoke first.
    ServerFirst,
    /// It began as connections to PostgreSQL do.
    Postgres,
    /// Who spoke first is not known: nobody has looked.
    Unknown,
}

/// States of a socket, from `include/net/tcp_states.h`. A connected datagram socket is `established`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum SocketState {
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    Closed,
    CloseWait,
    LastAck,
    Listen,
    Closing,
    /// One that this agent does not know.
    Other,
}

/// Which connections are wanted; `None` stands for any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub service: Option<String>,
    pub backend: Option<String>,
    pub node: Option<String>,
    pub state: Option<SocketState>,
}

/// What was found of the connections that fit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    pub items: Vec<Connection>,
    pub total: usize,
    /// How many of them all are sessions, by what speaks for it.
    pub sessions: BTreeMap<SessionKind, usize>,
}

/// The connections that fit `filter`, and of them at most `limit` as items. Reads /proc: not for a thread that others wait
/// for.
pub fn list(census: &Census, state: &State, filter: &Filter, limit: usize) -> Found {
    let mut owners = Owners { state, known: HashMap::new() };
    let mut processes: HashMap<u32, Process> = HashMap::new();
    let mut found = Found::default();
    for row in census.rows.iter().filter(|row| row.is_current()) {
        let owner = owners.find(row.connection.backend_id);
        if !filter.fits(&owner, SocketState::from(row.state)) {
            continue;
        }
        found.total += 1;
        let session = session(row, &owner, census.hz);
        session.into_iter().for_each(|session| *found.sessions.entry(session).or_default() += 1);
        if found.items.len() < limit {
            let pid = row.connection.pid;
            let process = processes.entry(pid).or_insert_with(|| Process::find(pid)).clone();
            found.items.push(Connection { session, ..connection(row, owner, process, census.hz) });
        }
    }
    found
}

/// How many flows of datagrams stay with backends that fit `filter`.
pub fn flows(flows: &BTreeMap<BackendId, u64>, state: &State, filter: &Filter) -> u64 {
    let mut owners = Owners { state, known: HashMap::new() };
    let fits =
        |id: &BackendId, owners: &mut Owners<'_>| filter.state.is_none() && filter.fits_owner(&owners.find(id.0));
    flows.iter().filter(|(id, _)| fits(id, &mut owners)).map(|(_, flows)| flows).sum()
}

/// Names of the backend of a connection.
#[derive(Clone, Default)]
struct Owner {
    service: Option<Name>,
    backend: Option<Name>,
    node: Option<Name>,
    /// What its service says of itself, and the port that stands in for that.
    protocol: Option<ServiceProtocol>,
    usual_port: Option<UsualPort>,
}

/// A cache of owners: many connections may have the same of thousands of backends.
struct Owners<'a> {
    state: &'a State,
    known: HashMap<u32, Owner>,
}

impl Owners<'_> {
    fn find(&mut self, id: u32) -> Owner {
        let state = self.state;
        let find = || {
            let (service, backend): (&Arc<Service>, _) = state.backend(BackendId(id))?;
            Some(Owner {
                service: Some(service.name.clone()),
                backend: Some(backend.name.clone()),
                node: state.node_by_id(backend.node).map(|node| node.name.clone()),
                protocol: service.protocol,
                usual_port: service.usual_port(backend),
            })
        };
        self.known.entry(id).or_insert_with(|| find().unwrap_or_default()).clone()
    }
}

impl Filter {
    fn fits(&self, owner: &Owner, state: SocketState) -> bool {
        self.fits_owner(owner) && self.state.is_none_or(|wanted| wanted == state)
    }

    fn fits_owner(&self, owner: &Owner) -> bool {
        let named = |wanted: &Option<String>, name: &Option<Name>| match (wanted, name) {
            (None, _) => true,
            (Some(wanted), Some(name)) => name == wanted.as_str(),
            (Some(_), None) => false,
        };
        named(&self.service, &owner.service) && named(&self.backend, &owner.backend) && named(&self.node, &owner.node)
    }
}

fn connection(row: &CensusRow, owner: Owner, process: Process, hz: u32) -> Connection {
    let record = &row.connection;
    let is_stream = record.protocol != UDP;
    let activity = row.activity(hz);
    let (hz, patience) = (hz.max(1), patience(DEFAULT_QUIET, hz));
    Connection {
        service: owner.service,
        backend: owner.backend,
        node: owner.node,
        protocol: if is_stream { Protocol::Tcp } else { Protocol::Udp }.to_string(),
        frontend: socket_addr(&record.frontend, record.frontend_port),
        backend_address: socket_addr(&record.backend, record.backend_port),
        local_address: socket_addr(&row.local, row.local_port),
        state: row.state.into(),
        pid: record.pid,
        pod: process.cgroup.as_deref().and_then(cgroups::pod),
        command: process.command,
        cgroup: process.cgroup,
        netns: row.netns,
        age_seconds: row.clock.saturating_sub(record.since) as f64 / 1e9,
        idle_seconds: (is_stream && SocketState::from(row.state) != SocketState::SynSent)
            .then(|| f64::from(activity.quiet()) / f64::from(hz)),
        in_flight: is_stream.then(|| activity.is_busy(Side::Caller, patience)),
        session: None,
        bytes_sent: row.bytes_sent,
        bytes_received: row.bytes_received,
    }
}

fn session(row: &CensusRow, owner: &Owner, hz: u32) -> Option<SessionKind> {
    let record = &row.connection;
    if record.protocol == UDP {
        return None;
    }
    match (owner.protocol, owner.usual_port) {
        (Some(ServiceProtocol::Request), _) => None,
        (Some(ServiceProtocol::Stream), _) => Some(SessionKind::Stream),
        (None, Some(_)) => Some(SessionKind::UsualPort),
        (None, None) => match record.session(&row.activity(hz)) {
            Session::None => None,
            Session::ServerFirst => Some(SessionKind::ServerFirst),
            Session::Postgres => Some(SessionKind::Postgres),
            Session::Unknown => Some(SessionKind::Unknown),
        },
    }
}

/// Who called connect(), as far as it is still there.
#[derive(Clone)]
struct Process {
    command: Option<String>,
    cgroup: Option<String>,
}

impl Process {
    fn find(pid: u32) -> Self {
        let command = fs::read(format!("/proc/{pid}/comm")).ok();
        let command = command.map(|name| String::from_utf8_lossy(&name).trim_end_matches('\n').to_owned());
        Self { command, cgroup: cgroups::name_of_process(pid) }
    }
}

impl From<u32> for SocketState {
    fn from(number: u32) -> Self {
        match number {
            1 => Self::Established,
            2 => Self::SynSent,
            3 | 12 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            7 | 13 => Self::Closed,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => Self::Other,
        }
    }
}
