//! Who asked for which change: told in events and in the log, and kept in the store over restarts, together with what the
//! last changes replaced.

use std::sync::Arc;

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    model::undo::Undo,
    source::store::{ExtraRecord, Store},
    view::{
        events::{Event, EventKind},
        history::{History, HistoryEntry},
    },
};

/// Entries that are kept. The oldest go first.
pub(super) const KEPT: usize = 1024;
/// Changes of one request that are kept and logged one by one; more are kept as one.
const EACH: usize = 32;
const PREFIX: &str = "audit/";
/// Changes that can be taken back. The oldest go first.
pub(super) const UNDOABLE: usize = 64;
/// Bytes of what a change has replaced; of more, nothing is kept.
const MOST_REPLACED: usize = 1 << 20;
const UNDO_PREFIX: &str = "undo/";

/// Something that has come of a change, and who asked for it.
#[derive(Clone, Debug)]
pub(super) struct AuditEntry {
    pub by: Option<Arc<str>>,
    pub kind: EventKind,
    pub object: String,
    pub message: String,
}

/// What the store holds of it.
#[derive(Debug, Default)]
pub(super) struct Audit {
    history: History,
}

/// Records for the transaction of a change, and the history after it.
pub(super) struct Kept {
    pub records: Vec<ExtraRecord>,
    history: History,
}

#[derive(Deserialize, Serialize)]
struct AuditRecord {
    #[serde(flatten)]
    event: Event,
    /// Absent in records of earlier versions: a change of its own.
    #[serde(default)]
    change: Option<u64>,
}

impl Audit {
    /// What earlier agents have kept. A record that cannot be read is passed over: no change depends on it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(store: &Store) -> Result<(Self, Vec<Event>)> {
        let (mut history, mut events) = (History::default(), Vec::new());
        for (_, record) in store.extras(PREFIX)? {
            let Ok(AuditRecord { event, change }) = serde_json::from_slice(&record) else { continue };
            history.entries.extend(entry(&event, change.unwrap_or(event.id)));
            events.push(event);
        }
        let undoable = store.extras(UNDO_PREFIX)?;
        let changes = undoable.iter().filter_map(|(key, _)| key.strip_prefix(UNDO_PREFIX)?.parse::<u64>().ok());
        history.undoable = changes.collect();
        Ok((Self { history }, events))
    }

    /// Records of what was asked for and what it replaced; those that are one too many go.
    pub fn records(&self, told: &[AuditEntry], replaced: Option<&Undo>) -> Kept {
        let mut history = self.history.clone();
        let mut records = Vec::new();
        let time = Timestamp::now();
        let last = history.entries.last().map_or(0, |(id, _)| *id);
        let first = u64::try_from(time.as_microsecond()).unwrap_or(0).max(last + 1);
        let asked: Vec<_> = told.iter().filter(|told| told.by.is_some()).cloned().collect();
        let replaced = replaced.filter(|_| !asked.is_empty()).and_then(|undo| serde_json::to_vec(undo).ok());
        if let Some(replaced) = replaced.filter(|record| record.len() <= MOST_REPLACED) {
            records.push((undo_key(first), Some(replaced)));
            history.undoable.insert(first);
        }
        for (id, AuditEntry { by, kind, object, message }) in (first..).zip(summed_up(asked)) {
            let event = Event { id, time, kind, object: Some(object), message, by };
            history.entries.extend(entry(&event, first));
            // Nothing in an event cannot be written.
            let Ok(record) = serde_json::to_vec(&AuditRecord { event, change: Some(first) }) else { continue };
            records.push((key(id), Some(record)));
        }
        while history.entries.len() > KEPT
            && let Some((id, entry)) = history.entries.pop_front()
        {
            records.push((key(id), None));
            if history.undoable.remove(&entry.change).is_some() {
                records.push((undo_key(entry.change), None));
            }
        }
        while history.undoable.len() > UNDOABLE
            && let Some(change) = history.undoable.get_min().copied()
        {
            history.undoable.remove(&change);
            records.push((undo_key(change), None));
        }
        Kept { records, history }
    }

    /// Notes that the store has taken them.
    pub fn keep(&mut self, kept: Kept) {
        self.history = kept.history;
    }

    pub fn history(&self) -> &History {
        &self.history
    }

    /// What a change has replaced, while that is kept.
    ///
    /// # Errors
    /// The store cannot be read, or another version has written it.
    pub fn replaced(&self, store: &Store, change: u64) -> Result<Option<Undo>> {
        let record = store.get_extra(&undo_key(change))?;
        let undo = record.map(|record| serde_json::from_slice(&record)).transpose();
        undo.with_context(|| format!("reading what change {change} replaced"))
    }
}

fn entry(event: &Event, change: u64) -> Option<(u64, Arc<HistoryEntry>)> {
    let Event { id, time, kind, object, message, by } = event.clone();
    Some((id, Arc::new(HistoryEntry { change, time, kind, object: object?, message, by: by?, undoable: false })))
}

/// All of it, or the sum of what is much.
fn summed_up(told: Vec<AuditEntry>) -> Vec<AuditEntry> {
    match told.first() {
        Some(first) if told.len() > EACH => {
            let message = format!("{}; and {} other changes of the same request", first.message, told.len() - 1);
            vec![AuditEntry { message, ..first.clone() }]
        }
        _ => told,
    }
}

/// Says in the log who asked for what.
pub(super) fn log(told: &[AuditEntry]) {
    let asked = told.iter().filter(|told| told.by.is_some()).cloned();
    for AuditEntry { by, kind, object, message } in summed_up(asked.collect()) {
        tracing::info!(by = by.as_deref(), object, "{}: {message}", kind.name());
    }
}

/// Of one width, so that their order is that of the ids.
fn key(id: u64) -> String {
    format!("{PREFIX}{id:020}")
}

fn undo_key(change: u64) -> String {
    format!("{UNDO_PREFIX}{change:020}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(by: Option<&str>, object: &str) -> AuditEntry {
        AuditEntry { by: by.map(Arc::from), kind: EventKind::Zeroed, object: object.into(), message: "zeroed".into() }
    }

    #[test]
    fn the_last_changes_that_somebody_asked_for_are_kept() {
        let mut audit = Audit::default();
        let undo = Undo::default();
        assert!(audit.records(&[told(None, "a")], Some(&undo)).records.is_empty(), "the agent's own");
        for _ in 0..KEPT {
            audit.keep(audit.records(&[told(Some("ops"), "a")], Some(&undo)));
        }
        let ids: Vec<_> = audit.history.entries.iter().map(|(id, _)| *id).collect();
        assert!(ids.len() == KEPT && ids.is_sorted_by(|a, b| a < b));
        assert_eq!(audit.history.undoable.len(), UNDOABLE);
        let kept = audit.records(&[told(Some("ops"), "a"), told(Some("ops"), "b")], None);
        let gone: Vec<_> =
            kept.records.iter().filter(|(_, record)| record.is_none()).map(|(key, _)| key.clone()).collect();
        assert_eq!(gone, [key(ids[0]), key(ids[1])]);
        audit.keep(kept);
        let newest: Vec<_> = audit.history.of(None).take(3).collect();
        assert_eq!((newest[0].change, &*newest[0].object), (newest[1].change, "b"));
        assert!(!newest[0].undoable && newest[2].undoable);
    }

    #[test]
    fn a_request_for_many_changes_is_kept_as_one() {
        let many: Vec<_> = (0..1000).map(|number| told(Some("ops"), &format!("s{number}"))).collect();
        let kept = Audit::default().records(&many, None);
        let [(_, Some(record))] = &kept.records[..] else { unreachable!("one record") };
        let AuditRecord { event, change } = serde_json::from_slice(record).unwrap();
        assert_eq!((event.by.as_deref(), event.object.as_deref()), (Some("ops"), Some("s0")));
        assert_eq!(change, Some(event.id));
        assert!(event.message.ends_with("and 999 other changes of the same request"), "{}", event.message);
    }
}
