//! Changes that were asked for over the API: all of a request's or none.

use std::time::Instant;

use jiff::Timestamp;

use super::{
    client::{ChangeError, Done, Options},
    event_loop::Engine,
    transaction::{OnFailure, Proposal, without_tables},
};
use crate::{
    model::{Applied, Change, Name, Outcome, Refusal, State, Touched},
    plan::DataPlane,
    view::writes,
};

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
        let Options { dry_run, received, guards, by: _ } = options;
        let before = self.state.clone();
        let Next { state: next, touched, outcome } = self.next(changes)?;
        guards.check(&before, &next, &touched, changes)?;
        if guards.shrink
            && let Some(shrink) = self.brake.judge(&before, &next, &touched)
        {
            return Err(shrink.refusal(self.brake.limit).into());
        }
        let done = |acknowledged: Instant, published, plan, unsaved| Done {
            outcome,
            before: before.clone(),
            programmed_in: acknowledged.saturating_duration_since(received),
            acknowledged_at: Timestamp::now(),
            published,
            plan,
            unsaved,
        };
        if dry_run {
            let writes = self.rehearse(&next, &touched, changes).map_err(|error| refused(error, changes))?;
            let plan = writes::lines(&writes, &before, &next);
            return Ok(done(Instant::now(), self.as_published(next), plan, None));
        }
        let is_zero = changes.iter().any(|change| matches!(change, Change::Zero { .. }));
        if touched.is_empty() {
            if is_zero {
                self.look_at_attachment();
            }
            return Ok(done(Instant::now(), self.publish(), Vec::new(), None));
        }
        let committed = self.commit(Proposal {
            next,
            touched,
            changes,
            marks: &[],
            records: Vec::new(),
            received,
            on_failure: if without_tables(changes) { OnFailure::HoldUnsaved } else { OnFailure::Undo },
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
        let done = done(committed.acknowledged, self.publish(), Vec::new(), committed.unsaved);
        self.tell_cancelled(committed.cancelled);
        Ok(done)
    }

    /// The state after all of the changes together.
    pub(super) fn next(&self, changes: &[Change]) -> Result<Next, ChangeError> {
        let together: Vec<_> = changes.iter().collect();
        match self.state.apply_together(&together, Timestamp::now()) {
            Ok(Applied { state, touched, outcome }) => Ok(Next { state, touched, outcome }),
            Err(mut refused) => {
                let (place, refusal) = refused.swap_remove(0);
                Err(if changes.len() > 1 { refusal.of_document(place + 1) } else { refusal }.into())
            }
        }
    }
}

/// Says of a table without room which of the changes asked for it.
fn refused(error: ChangeError, changes: &[Change]) -> ChangeError {
    let ChangeError::WithoutRoom(services) = error else { return error };
    let asks = |change: &Change, name: &Name| match change {
        Change::PutService { document, .. } => document.metadata.name == *name,
        Change::PatchService { service, .. }
        | Change::PatchBackend { service, .. }
        | Change::PatchGroup { service, .. } => service == name,
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
