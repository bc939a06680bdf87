//! Changes that were asked for over the API: all of a request's or none.

use std::time::Instant;

use jiff::Timestamp;

use super::{
    client::{ChangeError, Done, Options},
    event_loop::Engine,
    transaction::{OnFailure, Proposal},
};
use crate::{
    model::{Change, Name, Outcome, Refusal, State, Touched},
    plan::DataPlane,
    view::writes,
};

/// Changes of one request may wait for each other. So many rounds are made as long as each gets something done.
const ROUNDS: u32 = 16;

/// The state after some changes.
pub(super) struct Next {
    pub state: State,
    pub touched: Touched,
    /// Of the last change that did something.
    pub outcome: Outcome,
}

impl<M: DataPlane> Engine<M> {
    /// Carries out all of the changes, or none.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub(super) fn change(&mut self, changes: &[Change], options: Options) -> Result<Done, ChangeError> {
        let Options { dry_run, received } = options;
        let before = self.state.clone();
        let Next { state: next, touched, outcome } = self.next(changes)?;
        let done = |acknowledged: Instant, published, plan| Done {
            outcome,
            before: before.clone(),
            programmed_in: acknowledged.saturating_duration_since(received),
            acknowledged_at: Timestamp::now(),
            published,
            plan,
        };
        if dry_run {
            let writes = self.rehearse(&next, &touched, changes).map_err(|error| refused(error, changes))?;
            let plan = writes::lines(&writes, &before, &next);
            return Ok(done(Instant::now(), self.as_published(next), plan));
        }
        let is_zero = changes.iter().any(|change| matches!(change, Change::Zero { .. }));
        if touched.is_empty() {
            if is_zero {
                self.look_at_attachment();
            }
            return Ok(done(Instant::now(), self.publish(), Vec::new()));
        }
        let committed = self.commit(Proposal {
            next,
            touched,
            changes,
            marks: &[],
            records: Vec::new(),
            received,
            on_failure: OnFailure::Undo,
        });
        let committed = committed.map_err(|error| refused(error, changes))?;
        let done_in = committed.acknowledged.saturating_duration_since(received);
        self.instruments.applied(done_in);
        if is_zero {
            self.instruments.zeroed(done_in);
            // The answer says what is not proven.
            self.look_at_attachment();
        }
        self.retry_documents();
        let done = done(committed.acknowledged, self.publish(), Vec::new());
        self.tell_cancelled(committed.cancelled);
        Ok(done)
    }

    /// The state after all of the changes, in whatever order they are possible: one may free the frontend that another
    /// takes.
    pub(super) fn next(&self, changes: &[Change]) -> Result<Next, ChangeError> {
        let now = Timestamp::now();
        let mut next = Next { state: self.state.clone(), touched: Touched::default(), outcome: Outcome::Unchanged };
        let mut left: Vec<(usize, &Change)> = (1..).zip(changes).collect();
        for round in 1.. {
            let (before, mut first) = (left.len(), None);
            left.retain(|(number, change)| match next.state.apply(change, now) {
                Ok(applied) => {
                    next.state = applied.state;
                    next.touched.extend(applied.touched);
                    if applied.outcome != Outcome::Unchanged {
                        next.outcome = applied.outcome;
                    }
                    false
                }
                Err(refusal) => {
                    first.get_or_insert((*number, refusal));
                    true
                }
            });
            match first {
                Some((number, refusal)) if left.len() == before || round == ROUNDS => {
                    return Err(if changes.len() > 1 { refusal.of_document(number) } else { refusal }.into());
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(next)
    }
}

/// Says of a table without room which of the changes asked for it.
fn refused(error: ChangeError, changes: &[Change]) -> ChangeError {
    let ChangeError::WithoutRoom(services) = error else { return error };
    let asks = |change: &Change, name: &Name| match change {
        Change::PutService { document, .. } => document.metadata.name == *name,
        Change::PatchService { service, .. } | Change::PatchBackend { service, .. } => service == name,
        _ => false,
    };
    let Some((name, refusal)) = services.into_iter().next() else {
        return Refusal::malformed("a table finds no room").into();
    };
    let number = changes.iter().position(|change| asks(change, &name)).map(|index| index + 1);
    match number.filter(|_| changes.len() > 1) {
        Some(number) => refusal.of_document(number).into(),
        None => refusal.into(),
    }
}
