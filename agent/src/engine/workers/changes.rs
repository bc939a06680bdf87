//! Which services differ from one published state to the next.

use std::sync::Arc;

use crate::model::{Service, ServiceId, State};

/// A service that is new (without `before`), gone (without `after`), or changed.
pub struct ServiceChange {
    pub id: ServiceId,
    pub before: Option<Arc<Service>>,
    pub after: Option<Arc<Service>>,
}

/// Follows the published states, of which it may skip some.
#[derive(Default)]
pub struct ServiceChanges {
    seen: Option<State>,
}

impl ServiceChanges {
    /// What `state` changes since the last call; all of its services at the first.
    pub fn take(&mut self, state: &State) -> Vec<ServiceChange> {
        let before = self.seen.replace(state.clone()).unwrap_or_else(|| State::new(state.limits()));
        let change = |id| ServiceChange {
            id,
            before: before.service_by_id(id).cloned(),
            after: state.service_by_id(id).cloned(),
        };
        state.differences(&before).into_iter().map(change).collect()
    }
}
