//! Several changes as one, judged by the state that they lead to together.

use jiff::Timestamp;

use super::{Applied, Change, Outcome, Refusal, State, Touched};

impl State {
    /// The state after all of the changes, whatever their order: one may give up the frontend that another takes, and two
    /// may exchange theirs. `now` is used for nothing but time stamps.
    ///
    /// # Errors
    /// Those that cannot be made, by their places, in that order; never empty.
    pub fn apply_together(&self, changes: &[&Change], now: Timestamp) -> Result<Applied, Vec<(usize, Refusal)>> {
        let mut next = self.clone();
        next.settle();
        if changes.len() > 1 {
            changes.iter().for_each(|change| next.give_up_frontends(change));
        }
        let (mut touched, mut outcome, mut refused) = (Touched::default(), Outcome::Unchanged, Vec::new());
        for (place, change) in changes.iter().enumerate() {
            // What is refused may have been made by half.
            let (mut tried, mut moved) = (next.clone(), Touched::default());
            match tried.make(change, now, &mut moved) {
                Ok(made) => {
                    next = tried;
                    touched.extend(moved);
                    outcome = if made == Outcome::Unchanged { outcome } else { made };
                }
                Err(refusal) => refused.push((place, refusal)),
            }
        }
        for (place, change) in changes.iter().enumerate() {
            if let Err(refusal) = next.judge(change, self) {
                refused.push((place, refusal));
            }
        }
        if !refused.is_empty() {
            refused.sort_by_key(|(place, _)| *place);
            return Err(refused);
        }
        if touched.is_empty() {
            return Ok(Applied { state: self.clone(), touched, outcome: Outcome::Unchanged });
        }
        next.revision += 1;
        Ok(Applied { state: next, touched, outcome })
    }

    /// Whether the service that `change` has made of the one `before` may be so, as others are now.
    fn judge(&self, change: &Change, before: &Self) -> Result<(), Refusal> {
        let (service, backend) = match change {
            Change::PutService { document, .. } => (&document.metadata.name, None),
            Change::PatchService { service, .. } => (service, None),
            Change::PatchBackend { service, backend, .. } => (service, Some(backend)),
            Change::PatchGroup { .. }
            | Change::DeleteService { .. }
            | Change::PutNode { .. }
            | Change::DeleteNode { .. }
            | Change::UndeclareNode { .. }
            | Change::Zero { .. }
            | Change::Restore { .. }
            | Change::EndDrains { .. }
            | Change::UpdateHealth { .. } => return Ok(()),
        };
        let old = before.service(service.as_str());
        let Some(service) = self.service(service.as_str()) else { return Ok(()) };
        let index = backend.and_then(|name| service.backends.iter().position(|held| held.name == *name));
        self.check_loops(service, old.map(AsRef::as_ref), index).map_err(|refusal| match index {
            Some(index) => refusal.relative_to(&format!("spec.backends[{index}]")),
            None => refusal,
        })
    }
}
