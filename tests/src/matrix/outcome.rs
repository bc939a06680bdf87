//! What came of a cell, and how it is told.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Cell, Says};

/// The head of the table whose rows are [`Outcome::row`].
pub const HEAD: &str = "| cell | client | server | work | says | requests | failed | drained | closed idle | slowest drain | note |\n\
                        |---|---|---|---|---|---|---|---|---|---|---|";

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub report: Report,
    /// Requests that reached a server and whose answer did not reach the client, where servers count. One that failed
    /// and is not among them never left: the client took a connection that was just being closed, and gave up.
    pub reached: Option<u64>,
    pub drains: Vec<Drained>,
    /// Connections by the backend that they were steered to.
    pub connections: BTreeMap<String, u64>,
    /// What else the client has said.
    #[serde(skip)]
    pub log: String,
}

/// What a client says at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Library and version.
    pub client: String,
    pub requests: u64,
    pub failed: u64,
    #[serde(default)]
    pub errors: BTreeMap<String, u64>,
    /// Requests by the server that answered, where the client can tell.
    #[serde(default)]
    pub servers: BTreeMap<String, u64>,
}

/// One drain.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Drained {
    pub phase: String,
    /// In the report: seconds.
    #[serde(serialize_with = "seconds")]
    pub took: Duration,
    pub closed: u64,
}

impl Outcome {
    pub fn closed(&self) -> u64 {
        self.drains.iter().map(|drain| drain.closed).sum()
    }

    /// Drains that ended because nothing was left.
    pub fn drained(&self) -> usize {
        self.drains.iter().filter(|drain| drain.phase == "drained").count()
    }

    /// The slowest drain.
    pub fn slowest(&self) -> Duration {
        self.drains.iter().map(|drain| drain.took).max().unwrap_or_default()
    }

    /// Backends that had connections, or answered if the client can tell.
    pub fn served(&self) -> usize {
        if self.report.servers.is_empty() {
            return self.connections.values().filter(|count| **count > 0).count();
        }
        self.report.servers.len()
    }

    /// A row of a table in Markdown; see [`HEAD`].
    pub fn row(&self, cell: &Cell) -> String {
        let Report { client, requests, failed, errors, .. } = &self.report;
        let says = match cell.says {
            Says::Nothing => "nothing".to_owned(),
            Says::Request => "protocol: request".to_owned(),
            Says::IdleClose(quiet) => format!("idleClose: {quiet}s"),
            Says::Stream => "protocol: stream".to_owned(),
        };
        let evidence = errors.iter().map(|(error, times)| format!("{times} x {error}"));
        let mut note = vec![cell.note.to_owned()];
        note.extend(evidence);
        if let Some(reached) = self.reached.filter(|reached| *failed > 0 || *reached > 0) {
            note.push(format!("{reached} unanswered at a server"));
        }
        note.retain(|part| !part.is_empty());
        let (drained, drains, closed) = (self.drained(), self.drains.len(), self.closed());
        format!(
            "| {} | {client} | {} | {} | {says} | {requests} | {failed} | {drained}/{drains} | {closed} | {:.1} s | {} |",
            cell.name,
            cell.server.name(),
            cell.work,
            self.slowest().as_secs_f64(),
            note.join("; ").replace('|', "/")
        )
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}
