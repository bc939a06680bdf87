//! What was asked of nodes and backends, and how far it has come.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use utoipa::ToSchema;

use crate::model::{OperationPhase, Target, words::plural};

/// Operations kept; of those that are finished, the oldest go first.
const KEPT: usize = 1024;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub id: String,
    pub kind: OperationKind,
    /// `node/NAME` or `SERVICE/BACKEND`.
    pub target: String,
    pub phase: OperationPhase,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    /// Of a drain: when it ends at the latest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    pub remaining: Remaining,
    /// Idle connections that were closed, connected datagram sockets among them.
    pub closed_idle: u64,
    /// Connections that were closed because the deadline was over.
    #[serde(default)]
    #[schema(required)]
    pub closed_late: u64,
    /// Idle connections from callers that nobody steers, closed where they were accepted.
    #[serde(default)]
    #[schema(required)]
    pub closed_inbound: u64,
    pub message: String,
    /// Who asked for it, as events have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub by: Option<Arc<str>>,
    /// Backends that have left the configuration meanwhile: their connections count, and are not closed any more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gone: Vec<Gone>,
}

/// A backend that was drained when it left the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gone {
    /// Its number in the kernel's tables.
    pub id: u32,
    #[schema(value_type = String)]
    pub address: SocketAddr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OperationKind {
    Zero,
    Drain,
    Restore,
}

/// Connections that were there when they were counted last; what was not counted is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Remaining {
    /// Steered ones of this host.
    pub total: u64,
    /// Of them: with a request out or an answer not read, or with their SYN out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Of them: with nothing under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<u64>,
    /// Of the idle ones: taken for sessions, which are not closed for being idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u64>,
    /// Of them all: connected datagram sockets, which do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<u64>,
    /// Besides: answered flows of unconnected datagram sockets, which stay until they are quiet or the drain ends. Absent
    /// where no service of the target keeps flows (`protocol: stream` with a UDP frontend).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<u64>,
    /// Age of the oldest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_seconds: Option<f64>,
    /// Connections that the target's backends on this host have accepted, whoever calls. Absent where this host has
    /// none of their addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound: Option<u64>,
    /// Of them: with a request that is not answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_in_flight: Option<u64>,
}

impl Remaining {
    /// What is left, in words. `complete`: whether everything could be looked at.
    pub fn message(&self, phase: OperationPhase, complete: bool) -> String {
        let (inbound, flows) = (self.inbound.unwrap_or(0), self.flows.unwrap_or(0));
        match phase {
            OperationPhase::Drained => "nothing is left: it may be stopped".to_owned(),
            OperationPhase::DeadlineReached if self.total + inbound > 0 => {
                let accepted = if inbound > 0 { format!(" and {inbound} accepted") } else { String::new() };
                let (noun, verb) =
                    if self.total + inbound == 1 { ("connection", "is") } else { ("connections", "are") };
                let sessions = self.taken_for_sessions();
                let left =
                    format!("the deadline is over, and {} steered{accepted} {noun} {verb} left{sessions}", self.total);
                if flows > 0 { format!("{left}; {}", moving(flows)) } else { left }
            }
            OperationPhase::DeadlineReached if flows > 0 => format!("the deadline is over, and {}", moving(flows)),
            OperationPhase::DeadlineReached if complete => {
                "the deadline was over, and what was left is closed".to_owned()
            }
            OperationPhase::DeadlineReached => {
                "the deadline is over, and whether something is left is not known".to_owned()
            }
            OperationPhase::Zeroed
            | OperationPhase::Waiting
            | OperationPhase::ClosingIdle
            | OperationPhase::Cancelled
            | OperationPhase::Restored => {
                let left = plural(self.total, "connection");
                let (flying, idle) = (self.in_flight.unwrap_or(0), self.quiet());
                let here = self.inbound.map(|inbound| format!("; {inbound} accepted by its backends here"));
                let flows =
                    self.flows.map(|flows| format!("; {} of datagrams", plural(flows, "flow"))).unwrap_or_default();
                let (here, sessions) = (here.unwrap_or_default(), self.taken_for_sessions());
                format!("{left} left: {flying} in flight, {idle} idle{flows}{here}{sessions}")
            }
        }
    }

    fn taken_for_sessions(&self) -> String {
        match self.sessions {
            None | Some(0) => String::new(),
            Some(sessions) => format!(
                "; {sessions} idle {} taken for {}, and not closed for being idle unless the service says \
                 `protocol: request`",
                if sessions == 1 { "one is" } else { "ones are" },
                if sessions == 1 { "a session" } else { "sessions" },
            ),
        }
    }

    /// Idle ones, and those that do not tell.
    pub fn quiet(&self) -> u64 {
        self.idle.unwrap_or(0) + self.datagrams.unwrap_or(0)
    }
}

/// What becomes of flows when a drain ends.
fn moving(flows: u64) -> String {
    let moves = if flows == 1 { "moves with its next datagram" } else { "move with their next datagrams" };
    format!("{} of datagrams {moves}", plural(flows, "flow"))
}

impl Operation {
    /// A drain that the kernel has just begun.
    pub fn drain(id: &str, target: &Target, started_at: Timestamp, deadline: Timestamp) -> Self {
        Self {
            id: id.to_owned(),
            kind: OperationKind::Drain,
            target: target.to_string(),
            phase: OperationPhase::Zeroed,
            started_at,
            finished_at: None,
            deadline: Some(deadline),
            remaining: Remaining::default(),
            closed_idle: 0,
            closed_late: 0,
            closed_inbound: 0,
            message: format!("no new connection goes to {target}"),
            by: None,
            gone: Vec::new(),
        }
    }

    /// The same, asked for by somebody.
    #[must_use]
    pub fn by(self, by: Option<&Arc<str>>) -> Self {
        Self { by: by.cloned(), ..self }
    }

    /// How far a drain is, for whoever looks at its target.
    pub fn sentence(&self) -> String {
        let Self { id, phase, message, .. } = self;
        let deadline = self.deadline.filter(|_| !self.is_finished());
        let until = deadline.map(|deadline| format!(", until {deadline:.0} at the latest")).unwrap_or_default();
        format!("{id} ({}{until}): {message}", phase.name())
    }

    /// Connections that it has closed, for whatever reason.
    pub fn closed(&self) -> u64 {
        self.closed_idle + self.closed_late + self.closed_inbound
    }

    /// Whether nothing more will happen.
    pub fn is_finished(&self) -> bool {
        match self.phase {
            OperationPhase::Zeroed => self.kind != OperationKind::Drain,
            OperationPhase::Waiting | OperationPhase::ClosingIdle => false,
            OperationPhase::Drained
            | OperationPhase::DeadlineReached
            | OperationPhase::Cancelled
            | OperationPhase::Restored => true,
        }
    }
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// That no new connection comes: so with all operations that exist.
    Zeroed,
    Finished,
}

impl Wait {
    pub fn is_reached(self, operation: &Operation) -> bool {
        match self {
            Self::Zeroed => true,
            Self::Finished => operation.is_finished(),
        }
    }
}

/// The operations of one agent.
#[derive(Debug)]
pub struct Operations {
    by_id: Mutex<ById>,
    /// Changes with every operation that comes or moves on.
    version: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct ById {
    operations: BTreeMap<String, Operation>,
    /// Number of the last id that was given out.
    last: i64,
}

impl Default for Operations {
    fn default() -> Self {
        Self { by_id: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl Operations {
    /// An id that no operation has or will have. Ids are of one width, so that their order is that of time.
    pub fn new_id(&self) -> String {
        self.new_id_at(Timestamp::now())
    }

    fn new_id_at(&self, now: Timestamp) -> String {
        let mut by_id = self.lock();
        let mut number = now.as_microsecond().max(by_id.last + 1);
        loop {
            by_id.last = number;
            let id = format!("op-{number:017}");
            if !by_id.operations.contains_key(&id) {
                return id;
            }
            number += 1;
        }
    }

    /// Notes a zero or restore, which is done already. Returns its id.
    pub fn finished(
        &self,
        kind: OperationKind,
        target: &Target,
        by: Option<&Arc<str>>,
        started_at: Timestamp,
        active: u64,
    ) -> String {
        let (phase, message) = match kind {
            OperationKind::Restore => {
                (OperationPhase::Restored, format!("{target} takes connections by its weight again"))
            }
            OperationKind::Zero | OperationKind::Drain => {
                (OperationPhase::Zeroed, format!("no new connection goes to {target}"))
            }
        };
        let operation = Operation {
            kind,
            phase,
            finished_at: Some(Timestamp::now()),
            deadline: None,
            remaining: Remaining { total: active, ..Remaining::default() },
            message,
            ..Operation::drain(&self.new_id(), target, started_at, started_at).by(by)
        };
        let id = operation.id.clone();
        self.put(operation);
        id
    }

    /// Adds an operation, or replaces it.
    pub fn put(&self, operation: Operation) {
        let mut guard = self.lock();
        let by_id = &mut guard.operations;
        by_id.insert(operation.id.clone(), operation);
        while by_id.len() > KEPT {
            // The one that has been there to be asked for longest.
            let finished = by_id.iter().filter(|(_, operation)| operation.is_finished());
            let oldest = finished.min_by_key(|(_, operation)| operation.finished_at).map(|(id, _)| id.clone());
            let Some(oldest) = oldest else { break };
            by_id.remove(&oldest);
        }
        drop(guard);
        self.version.send_modify(|version| *version += 1);
    }

    /// Changes an operation that is not finished; returns it as it is then.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut Operation)) -> Option<Operation> {
        let mut by_id = self.lock();
        let operation = by_id.operations.get_mut(id).filter(|operation| !operation.is_finished())?;
        change(operation);
        let changed = operation.clone();
        drop(by_id);
        self.version.send_modify(|version| *version += 1);
        Some(changed)
    }

    pub fn get(&self, id: &str) -> Option<Operation> {
        self.lock().operations.get(id).cloned()
    }

    pub fn list(&self) -> Vec<Operation> {
        self.lock().operations.values().cloned().collect()
    }

    /// The operation when what is waited for has come, or as it is after `patience`.
    pub async fn wait(&self, id: &str, wait: Wait, patience: Duration) -> Option<Operation> {
        let mut version = self.version.subscribe();
        let reached = async {
            loop {
                version.borrow_and_update();
                if self.get(id).is_none_or(|operation| wait.is_reached(&operation)) || version.changed().await.is_err()
                {
                    return;
                }
            }
        };
        // Reached or not: what is there then is the answer.
        let _ = timeout(patience, reached).await;
        self.get(id)
    }

    fn lock(&self) -> MutexGuard<'_, ById> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
