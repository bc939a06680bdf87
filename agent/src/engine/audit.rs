//! Who asked for which change: told in events and in the log, and kept in the store over restarts.

use std::{collections::VecDeque, sync::Arc};

use anyhow::Result;
use jiff::Timestamp;

use crate::{
    source::store::{ExtraRecord, Store},
    view::events::{Event, EventKind},
};

/// Changes that are kept. The oldest go first.
pub(super) const KEPT: usize = 1024;
/// Changes of one request that are kept and logged one by one; more are kept as one.
const EACH: usize = 32;
const PREFIX: &str = "audit/";

/// Something that has come of a change, and who asked for it.
#[derive(Clone, Debug)]
pub(super) struct AuditEntry {
    pub by: Option<Arc<str>>,
    pub kind: EventKind,
    pub object: String,
    pub message: String,
}

/// What the store holds of it: ids of events, in order.
#[derive(Debug, Default)]
pub(super) struct Audit {
    kept: VecDeque<u64>,
}

/// Records for the transaction of a change, and their ids.
pub(super) struct Kept {
    pub records: Vec<ExtraRecord>,
    ids: Vec<u64>,
}

impl Audit {
    /// What earlier agents have kept. A record that cannot be read is passed over: no change depends on it.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn load(store: &Store) -> Result<(Self, Vec<Event>)> {
        let records = store.extras(PREFIX)?;
        let ids = records.iter().filter_map(|(key, _)| key.strip_prefix(PREFIX)?.parse().ok());
        let events = records.iter().filter_map(|(_, record)| serde_json::from_slice(record).ok());
        Ok((Self { kept: ids.collect() }, events.collect()))
    }

    /// Records of what was asked for; those that are one too many go.
    pub fn records(&self, told: &[AuditEntry]) -> Kept {
        let time = Timestamp::now();
        let last = self.kept.back().copied().unwrap_or(0);
        let first = u64::try_from(time.as_microsecond()).unwrap_or(0).max(last + 1);
        let asked: Vec<_> = told.iter().filter(|told| told.by.is_some()).cloned().collect();
        let events = (first..).zip(summed_up(asked));
        let mut kept = Kept { records: Vec::new(), ids: Vec::new() };
        for (id, AuditEntry { by, kind, object, message }) in events {
            let event = Event { id, time, kind, object: Some(object), message, by };
            // Nothing in an event cannot be written.
            let Ok(record) = serde_json::to_vec(&event) else { continue };
            kept.records.push((key(id), Some(record)));
            kept.ids.push(id);
        }
        let too_many = (self.kept.len() + kept.ids.len()).saturating_sub(KEPT);
        kept.records.extend(self.kept.iter().take(too_many).map(|id| (key(*id), None)));
        kept
    }

    /// Notes that the store has taken them.
    pub fn keep(&mut self, kept: &Kept) {
        self.kept.extend(&kept.ids);
        self.kept.drain(..self.kept.len().saturating_sub(KEPT));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn told(by: Option<&str>, object: &str) -> AuditEntry {
        AuditEntry { by: by.map(Arc::from), kind: EventKind::Zeroed, object: object.into(), message: "zeroed".into() }
    }

    #[test]
    fn the_last_changes_that_somebody_asked_for_are_kept() {
        let mut audit = Audit::default();
        assert!(audit.records(&[told(None, "a")]).records.is_empty(), "the agent's own");
        for _ in 0..KEPT {
            let kept = audit.records(&[told(Some("ops"), "a")]);
            assert!(kept.records.iter().all(|(_, record)| record.is_some()));
            audit.keep(&kept);
        }
        assert!(audit.kept.iter().is_sorted_by(|a, b| a < b));
        let kept = audit.records(&[told(Some("ops"), "a"), told(Some("ops"), "b")]);
        let gone: Vec<_> =
            kept.records.iter().filter(|(_, record)| record.is_none()).map(|(key, _)| key.clone()).collect();
        assert_eq!(gone, [key(audit.kept[0]), key(audit.kept[1])]);
        audit.keep(&kept);
        assert_eq!(audit.kept.len(), KEPT);
    }

    #[test]
    fn a_request_for_many_changes_is_kept_as_one() {
        let many: Vec<_> = (0..1000).map(|number| told(Some("ops"), &format!("s{number}"))).collect();
        let kept = Audit::default().records(&many);
        let [(_, Some(record))] = &kept.records[..] else { unreachable!("one record") };
        let event: Event = serde_json::from_slice(record).unwrap();
        assert_eq!((event.by.as_deref(), event.object.as_deref()), (Some("ops"), Some("s0")));
        assert!(event.message.ends_with("and 999 other changes of the same request"), "{}", event.message);
    }
}
