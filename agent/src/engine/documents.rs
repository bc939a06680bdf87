//! Documents of watched files, put in force. Whoever looked at the files hears what became of that look.

use std::time::Instant;

use anyhow::Result;
use jiff::Timestamp;

use super::{
    brake::Waiting,
    client::ChangeError,
    event_loop::Engine,
    transaction::{OnFailure, Proposal},
};
use crate::{
    model::{State, document::DocumentKey},
    plan::DataPlane,
    source::{
        files::FileEvent,
        reconcile::{DocumentProblem, Excluded, Reconciled, Reconciler},
        store::Store,
    },
};

impl<M: DataPlane> Engine<M> {
    /// Applies what one look at the watched files found.
    ///
    /// # Errors
    /// When the kernel or the store failed: nothing of the look was taken in, and it has to be made again. A document
    /// that is refused is told, and no failure.
    pub(super) fn documents(&mut self, events: &[FileEvent]) -> Result<()> {
        let all;
        let events = if self.brake.is_idle() {
            events
        } else {
            all = self.brake.with(events);
            all.as_slice()
        };
        for event in events {
            let of_file = self.problems.range((event.file().to_owned(), None)..).map(|(key, _)| key);
            let solved: Vec<_> = of_file.take_while(|(file, _)| file == event.file()).cloned().collect();
            solved.iter().for_each(|key| drop(self.problems.remove(key)));
        }
        let applied = self.apply_documents(|reconciler, store, state, excluded| {
            reconciler.handle(events, |file| store.applied(file), state, excluded, Timestamp::now())
        });
        if let Err(error) = &applied {
            tracing::error!("a look at the watched files has to be made again: {error:#}");
        }
        for event in events {
            match &applied {
                Ok(_) => drop(self.unapplied.remove(event.file())),
                Err(error) => drop(self.unapplied.insert(event.file().to_owned(), format!("{error:#}"))),
            }
        }
        let applied = applied.map(|waiting| self.hold(events, waiting));
        self.publish();
        applied
    }

    /// Tries again what documents asked for and were refused: it may be possible now.
    pub(super) fn retry_documents(&mut self) {
        self.documents_retry.begins();
        let retried = self
            .apply_documents(|reconciler, _, state, excluded| Ok(reconciler.retry(state, excluded, Timestamp::now())));
        match retried {
            Ok(_) => self.documents_retry.succeeded(),
            Err(error) => {
                tracing::warn!("refused documents are tried again later: {error:#}");
                self.documents_retry.failed();
            }
        }
    }

    /// Puts an outcome in force, but for the services that find no room, and for those that the brake holds, which are
    /// returned. After a failure the reconciler knows what it knew before.
    fn apply_documents(
        &mut self,
        mut reconcile: impl FnMut(&mut Reconciler, &Store, &State, &Excluded) -> Result<Reconciled>,
    ) -> Result<Waiting> {
        let before = self.reconciler.clone();
        let (mut excluded, mut waiting) = (Excluded::new(), Waiting::default());
        loop {
            let outcome = reconcile(&mut self.reconciler, &self.store, &self.state, &excluded);
            let outcome = outcome.inspect_err(|_| self.reconciler = before.clone())?;
            let shrink = self.brake.judge(&self.state, &outcome.state, &outcome.touched);
            if let Some(shrink) = shrink.as_ref().filter(|_| !self.brake.is_released())
                && waiting.add(shrink, self.brake.limit)
            {
                self.reconciler = before.clone();
                excluded.extend(waiting.documents.clone());
                continue;
            }
            match self.commit_documents(outcome) {
                Ok(mut problems) => {
                    if shrink.is_some() {
                        self.brake.engage();
                    }
                    let is_held = |key: &DocumentKey| waiting.documents.contains_key(key);
                    problems.retain(|problem| !problem.document.as_ref().is_some_and(is_held));
                    self.tell_problems(problems);
                    return Ok(waiting);
                }
                Err(ChangeError::WithoutRoom(more)) => {
                    self.reconciler = before.clone();
                    let known = excluded.len();
                    excluded
                        .extend(more.into_iter().map(|(service, refusal)| (DocumentKey::Service(service), refusal)));
                    if excluded.len() > known {
                        continue;
                    }
                    // Not by its document: as when the last room went to others meanwhile.
                    return Err(anyhow::anyhow!("SLOTS is full: run the agent with a larger --max-slots"));
                }
                Err(error) => {
                    self.reconciler = before;
                    return Err(error.into());
                }
            }
        }
    }

    /// Returns the problems, to be told once the rest is in force.
    fn commit_documents(&mut self, outcome: Reconciled) -> Result<Vec<DocumentProblem>, ChangeError> {
        let Reconciled { state, touched, marks, problems } = outcome;
        if touched.is_empty() && marks.is_empty() {
            return Ok(problems);
        }
        let committed = self.commit(Proposal {
            next: state,
            touched,
            changes: &[],
            marks: &marks,
            records: Vec::new(),
            received: Instant::now(),
            on_failure: OnFailure::Undo,
        })?;
        self.publish();
        self.tell_cancelled(committed.cancelled);
        Ok(problems)
    }
}
