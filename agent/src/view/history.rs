//! Which changes somebody asked for, and which of them can be taken back.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::events::EventKind;

/// What one change has come to for one object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The same for all that one request, or one look at files, has changed; what `undo` takes. Grows with time.
    pub change: u64,
    pub time: Timestamp,
    pub kind: EventKind,
    /// `service/shop`, `node/node-1` or `shop/n1`.
    pub object: String,
    pub message: String,
    /// Who asked for it, as in an event.
    #[schema(value_type = String)]
    pub by: Arc<str>,
    /// Whether what it replaced is still kept.
    pub undoable: bool,
}

/// The changes that are kept, oldest first. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// With their numbers, in order.
    pub entries: imbl::Vector<(u64, Arc<HistoryEntry>)>,
    /// Changes whose former documents are kept.
    pub undoable: imbl::OrdSet<u64>,
}

/// What taking a change back has come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoView {
    pub dry_run: bool,
    /// The change that was taken back.
    pub change: u64,
    pub items: Vec<UndoItem>,
    /// From the reading of the request to the kernel's acknowledgement of all.
    pub programmed_in_microseconds: u64,
    /// With `dryRun`: writes to the kernel's tables, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub plan: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UndoItem {
    /// `service/shop`, `node/node-1` or `shop/n1`.
    pub object: String,
    pub effect: UndoEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum UndoEffect {
    /// Its document is again what it was.
    PutBack,
    /// The change had made it.
    Removed,
    /// The zero that the change had ended holds again.
    Zeroed,
    /// The zero that the change had made is ended.
    Restored,
}

impl History {
    /// Of an object and its backends, or of all: newest first.
    pub fn of<'a>(&'a self, object: Option<&'a str>) -> impl Iterator<Item = HistoryEntry> + 'a {
        let entries = self.entries.iter().rev().map(|(_, entry)| entry);
        entries.filter(move |entry| object.is_none_or(|object| concerns(&entry.object, object))).map(|entry| {
            let undoable = self.undoable.contains(&entry.change);
            HistoryEntry { undoable, ..(**entry).clone() }
        })
    }

    pub fn holds(&self, change: u64) -> bool {
        self.entries.iter().any(|(_, entry)| entry.change == change)
    }
}

impl UndoEffect {
    pub fn words(self) -> &'static str {
        match self {
            Self::PutBack => "is as it was",
            Self::Removed => "is removed",
            Self::Zeroed => "is zeroed again",
            Self::Restored => "is restored",
        }
    }
}

/// Whether what is told of `told` is about `object`.
fn concerns(told: &str, object: &str) -> bool {
    told == object
        || object
            .strip_prefix("service/")
            .is_some_and(|service| told.strip_prefix(service).is_some_and(|rest| rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_belong_to_their_service() {
        for (told, object, is_so) in [
            ("service/shop", "service/shop", true),
            ("shop/n1", "service/shop", true),
            ("shopping/n1", "service/shop", false),
            ("shop/n1", "shop/n1", true),
            ("shop/n1", "shop/n2", false),
            ("node/n1", "node/n1", true),
            ("service/node", "node/n1", false),
        ] {
            assert_eq!(concerns(told, object), is_so, "{told} {object}");
        }
    }
}
