//! /v1/operations: what was asked of a node or backend, and how far it has come. Kept in memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::timeout};
use utoipa::{IntoParams, ToSchema};

use super::{
    App,
    parameters::{Ask, At, NoQuery},
    problem::{Problem, ReadProblems},
    views::List,
};
use crate::model::Target;

/// Operations kept; the oldest go first.
const KEPT: usize = 1024;
/// Longest wait of one request.
const MAX_WAIT: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub id: String,
    pub kind: OperationKind,
    /// `node/NAME` or `SERVICE/BACKEND`.
    pub target: String,
    pub phase: Phase,
    pub started_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub remaining: Remaining,
    /// Idle connections that were closed.
    pub closed_idle: u64,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum OperationKind {
    Zero,
    Restore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The kernel sends no new connection.
    Zeroed,
    /// The weight is back.
    Restored,
}

/// Connections that were there when the operation was looked at last; what was not counted is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Remaining {
    pub total: u64,
    pub in_flight: Option<u64>,
    pub idle: Option<u64>,
    pub inbound: Option<u64>,
}

impl Phase {
    /// Whether nothing more will happen.
    pub const fn is_finished(self) -> bool {
        match self {
            Self::Zeroed | Self::Restored => true,
        }
    }
}

/// The operations of this agent.
#[derive(Debug)]
pub struct Operations {
    by_id: Mutex<BTreeMap<String, Operation>>,
    /// Changes with every operation that comes or moves on.
    version: watch::Sender<u64>,
}

impl Default for Operations {
    fn default() -> Self {
        Self { by_id: Mutex::default(), version: watch::Sender::new(0) }
    }
}

impl Operations {
    /// Notes an operation that is done already. Returns its id.
    pub fn finished(&self, kind: OperationKind, target: &Target, started_at: Timestamp, active: u64) -> String {
        let (phase, message) = match kind {
            OperationKind::Zero => (Phase::Zeroed, format!("no new connection goes to {target}")),
            OperationKind::Restore => (Phase::Restored, format!("{target} takes connections by its weight again")),
        };
        let finished_at = Timestamp::now();
        let mut by_id = self.lock();
        // Ids of one width, so that their order is that of time.
        let mut number = finished_at.as_microsecond();
        let id = loop {
            let id = format!("op-{number:017}");
            if !by_id.contains_key(&id) {
                break id;
            }
            number += 1;
        };
        let operation = Operation {
            id: id.clone(),
            kind,
            target: target.to_string(),
            phase,
            started_at,
            finished_at: Some(finished_at),
            remaining: Remaining { total: active, ..Remaining::default() },
            closed_idle: 0,
            message,
        };
        by_id.insert(id.clone(), operation);
        while by_id.len() > KEPT {
            by_id.pop_first();
        }
        drop(by_id);
        self.version.send_modify(|version| *version += 1);
        id
    }

    pub fn get(&self, id: &str) -> Option<Operation> {
        self.lock().get(id).cloned()
    }

    pub fn list(&self) -> Vec<Operation> {
        self.lock().values().cloned().collect()
    }

    /// The operation when it is finished, or as it is after `patience`.
    pub async fn wait(&self, id: &str, patience: Duration) -> Option<Operation> {
        let mut version = self.version.subscribe();
        let finished = async {
            loop {
                version.borrow_and_update();
                if self.get(id).is_none_or(|operation| operation.phase.is_finished())
                    || version.changed().await.is_err()
                {
                    return;
                }
            }
        };
        // Finished or not: what is there then is the answer.
        let _ = timeout(patience, finished).await;
        self.get(id)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Operation>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// Answer when this is reached, or when `timeout` is over. Without it, at once.
    #[param(required = false, inline)]
    wait: Option<Wait>,
    /// Such as `30s`, which is the default.
    #[param(required = false)]
    timeout: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
enum Wait {
    Zeroed,
    Drained,
}

/// Operations of this agent since it started, oldest first.
#[utoipa::path(get, path = "/v1/operations", tag = "operations",
    responses((status = 200, body = List<Operation>), ReadProblems))]
pub async fn list(State(app): State<App>, _: Ask<NoQuery>) -> Json<List<Operation>> {
    Json(List { items: app.operations.list() })
}

/// One operation: 200 when it is finished, 202 while it is not.
#[utoipa::path(get, path = "/v1/operations/{operation}", tag = "operations",
    params(("operation" = String, Path), WaitQuery),
    responses((status = 200, description = "Finished", body = Operation),
        (status = 202, description = "Still running", body = Operation), ReadProblems))]
pub async fn get(State(app): State<App>, At(id): At<String>, Ask(query): Ask<WaitQuery>) -> Result<Response, Problem> {
    let patience = patience(query.timeout.as_deref())?;
    let found = match query.wait {
        Some(Wait::Zeroed | Wait::Drained) => app.operations.wait(&id, patience).await,
        None => app.operations.get(&id),
    };
    let operation = found.ok_or_else(|| Problem::not_found(format!("there is no operation {id:?}")))?;
    let status = if operation.phase.is_finished() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(operation)).into_response())
}

fn patience(text: Option<&str>) -> Result<Duration, Problem> {
    let Some(text) = text else { return Ok(Duration::from_secs(30)) };
    let duration: Option<Duration> = text.parse().ok().and_then(|duration: SignedDuration| duration.try_into().ok());
    let duration = duration.filter(|duration| *duration <= MAX_WAIT);
    duration.ok_or_else(|| {
        Problem::bad_request(format!("timeout is {text:?}: write a duration such as 30s, at most 1h")).at("timeout")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn finished_operations_are_answered_at_once_and_the_oldest_go() {
        let operations = Operations::default();
        let target = "node/a".parse().unwrap();
        let ids: Vec<_> =
            (0..KEPT + 1).map(|_| operations.finished(OperationKind::Zero, &target, Timestamp::now(), 7)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert_eq!(operations.list().len(), KEPT);
        assert_eq!(operations.get(&ids[0]), None);
        let last = operations.wait(&ids[KEPT], Duration::from_secs(60)).await.unwrap();
        assert_eq!((last.phase, last.remaining.total), (Phase::Zeroed, 7));
    }

    #[test]
    fn durations_are_read() {
        assert_eq!(patience(Some("1m30s")).unwrap(), Duration::from_secs(90));
        for wrong in ["", "soon", "-1s", "2h"] {
            assert_eq!(patience(Some(wrong)).unwrap_err().status, 400, "{wrong:?}");
        }
    }
}
