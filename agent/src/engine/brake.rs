//! The brake on what files ask for: what would remove too much at once waits until somebody accepts it. Everything else of
//! the same look is put in force.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

use super::event_loop::Engine;
use crate::{
    model::{Refusal, State, Touched, shrink::Shrink},
    plan::DataPlane,
    settings::Brake,
    source::{files::FileEvent, reconcile::Excluded},
    view::events::EventKind,
};

/// What was accepted happens within this time, or has to be accepted anew.
const RELEASED: Duration = Duration::from_secs(60);

/// What waits, and how much may go at once.
#[derive(Debug)]
pub(super) struct Braking {
    /// Percent.
    pub limit: u8,
    /// Until then the next change that would wait does not.
    released: Option<Instant>,
    /// What the looks found that waits, by the files.
    held: BTreeMap<PathBuf, FileEvent>,
    /// Why.
    why: Option<String>,
}

/// What has to wait of one look.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub documents: Excluded,
    pub why: Option<String>,
}

impl Braking {
    pub fn new(brake: Brake) -> Self {
        let released = brake.accept_shrink.then(|| Instant::now() + RELEASED);
        Self { limit: brake.shrink_limit, released, held: BTreeMap::new(), why: None }
    }

    /// What waits and `events`, unless a later look has found something else of the same file.
    pub fn with(&self, events: &[FileEvent]) -> Vec<FileEvent> {
        let mut held = self.held.clone();
        for event in events {
            held.remove(event.file());
        }
        // Removals come last, so that a document that moved is taken over by its new file first.
        let is_removal = |event: &FileEvent| matches!(event, FileEvent::Removed { .. });
        let (removals, mut all): (Vec<_>, Vec<_>) =
            held.into_values().chain(events.iter().cloned()).partition(is_removal);
        all.extend(removals);
        all
    }

    pub fn is_idle(&self) -> bool {
        self.held.is_empty()
    }

    /// What a change takes away, if that is too much to happen unasked.
    pub fn judge(&self, before: &State, after: &State, touched: &Touched) -> Option<Shrink> {
        Some(Shrink::of(before, after, touched)).filter(|shrink| shrink.exceeds(self.limit))
    }

    pub fn is_released(&self) -> bool {
        self.released.is_some_and(|until| Instant::now() < until)
    }

    /// It has happened.
    pub fn engage(&mut self) {
        self.released = None;
    }
}

impl Waiting {
    /// Has the documents of a shrink wait. Returns whether they did not already.
    pub fn add(&mut self, shrink: &Shrink, limit: u8) -> bool {
        let accept = "`sluice accept-shrink` lets it happen";
        let why = format!("held, as more than {limit} % would go at once: {}; {accept}", shrink.sentence());
        let known = self.documents.len();
        self.documents.extend(shrink.documents().map(|key| (key, Refusal::malformed(why.clone()))));
        self.why = Some(why);
        self.documents.len() > known
    }
}

impl<M: DataPlane> Engine<M> {
    /// Keeps of the events of a look those that wait, and tells of it once.
    pub(super) fn hold(&mut self, events: &[FileEvent], waiting: Waiting) {
        self.brake.held.clear();
        let Waiting { documents, why } = waiting;
        for event in events.iter().filter(|_| why.is_some()) {
            let brings = match event {
                FileEvent::Changed { documents: brought, .. } => {
                    brought.iter().any(|parsed| documents.contains_key(&parsed.document.key()))
                }
                FileEvent::Removed { .. } => false,
                FileEvent::Failed { .. } => continue,
            };
            let has_brought = || {
                self.store.applied(event.file()).is_ok_and(|held| held.keys().any(|key| documents.contains_key(key)))
            };
            if brings || has_brought() {
                self.brake.held.insert(event.file().to_owned(), event.clone());
            }
        }
        let files: Vec<PathBuf> = self.brake.held.keys().cloned().collect();
        if let Some(why) = &why {
            self.unapplied.extend(files.into_iter().map(|file| (file, why.clone())));
            if self.brake.why.as_ref() != Some(why) {
                tracing::error!("what files ask for is {why}");
                self.note(EventKind::ShrinkHeld, None, why.clone());
            }
        }
        self.brake.why = why;
    }

    /// Lets what is held happen. Returns the files that asked for it.
    pub(super) fn accept_shrink(&mut self) -> Vec<PathBuf> {
        let files: Vec<_> = self.brake.held.keys().cloned().collect();
        if !files.is_empty() {
            self.brake.released = Some(Instant::now() + RELEASED);
            // A failure is told, and what is held stays so.
            let _ = self.documents(&[]);
        }
        files
    }
}
