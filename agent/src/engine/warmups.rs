//! Warm-up as the engine sees it: begun with the change that lets a backend take connections, moved on in time,
//! and found again after a restart.

use anyhow::Result;

use super::event_loop::Engine;
use crate::{
    control::{
        StateMachine,
        warmup::{Ramps, WarmupAction, WarmupEvent},
    },
    host::clock,
    model::{BackendId, Stamp, State, Touched},
    plan::DataPlane,
    source::store::ExtraRecord,
    view::events::EventKind,
};

const PREFIX: &str = "ramp/";

/// What a change does to the backends that are warming up.
pub(super) struct Warming {
    /// After it.
    pub ramps: Ramps,
    pub begun: Vec<BackendId>,
    /// What the store keeps of it, in one transaction with the change.
    pub records: Vec<ExtraRecord>,
}

impl<M: DataPlane> Engine<M> {
    /// What a change to `next` begins and ends at `now`.
    pub(super) fn warm_up(&self, next: &State, touched: &Touched, now: &Stamp) -> Warming {
        let mut ramps = self.ramps.clone();
        ramps.handle(WarmupEvent::Changed { before: &self.state, after: next, touched }, *now);
        let (mut begun, mut records) = (Vec::new(), Vec::new());
        for action in ramps.actions() {
            match action {
                WarmupAction::Begun(id) => {
                    begun.push(id);
                    // A stamp is always written.
                    let since = ramps.get(id).and_then(|ramp| serde_json::to_vec(&ramp.since).ok());
                    records.extend(since.map(|since| (key(id), Some(since))));
                }
                WarmupAction::Ended(id) => records.push((key(id), None)),
                WarmupAction::Stepped(_) => {}
            }
        }
        Warming { ramps, begun, records }
    }

    /// Makes the steps that are due; their tables follow at leisure.
    pub(super) fn step_ramps(&mut self) {
        let now = clock::stamp();
        self.ramps.handle(WarmupEvent::Timeout(&self.state), now);
        let mut ended = Vec::new();
        for action in self.ramps.actions() {
            let (WarmupAction::Begun(id) | WarmupAction::Stepped(id) | WarmupAction::Ended(id)) = action;
            self.stale.extend(self.state.backend(id).map(|(service, _)| service.id));
            if action == WarmupAction::Ended(id) {
                ended.push(id);
            }
        }
        if ended.is_empty() {
            return;
        }
        self.keep(ended.iter().map(|id| (key(*id), None)).collect());
        self.tell_warmups(EventKind::WarmupEnded, &ended);
    }

    /// Goes on with what an earlier agent began.
    pub(super) fn load_ramps(&mut self) -> Result<()> {
        let now = clock::stamp();
        let mut over = Vec::new();
        for (key, bytes) in self.store.extras(PREFIX)? {
            let id = key.strip_prefix(PREFIX).and_then(|id| id.parse().ok()).map(BackendId);
            let since: Option<Stamp> = serde_json::from_slice(&bytes).ok();
            if let (Some(id), Some(since)) = (id, since)
                && let Some((service, backend)) = self.state.backend(id)
                && let Some(warmup) = service.warmup(backend)
            {
                self.ramps.handle(WarmupEvent::Resumed { backend: id, warmup, since }, now);
                if self.ramps.next_action().is_none() {
                    continue;
                }
            }
            over.push((key, None));
        }
        if !over.is_empty() {
            self.keep(over);
        }
        Ok(())
    }
}

fn key(id: BackendId) -> String {
    format!("{PREFIX}{}", id.0)
}
