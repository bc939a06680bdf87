//! Warm-up as the engine sees it: begun with the change that lets a backend take connections, moved on in time,
//! and found again after a restart.

use anyhow::{Context, Result};

use super::event_loop::Engine;
use crate::{
    control::warmup::{Followed, Moved, Ramps},
    host::clock,
    model::{BackendId, ServiceId, Stamp, State, Touched},
    plan::DataPlane,
    source::store::{Batch, ExtraRecord},
    view::events::EventKind,
};

const PREFIX: &str = "ramp/";

/// What a change does to the backends that are warming up.
pub(super) struct Warming {
    /// After it.
    pub ramps: Ramps,
    pub followed: Followed,
    /// What the store keeps of it, in one transaction with the change.
    pub records: Vec<ExtraRecord>,
}

impl<M: DataPlane> Engine<M> {
    /// What a change to `next` begins and ends at `now`.
    pub(super) fn warm_up(&self, next: &State, touched: &Touched, now: &Stamp) -> Warming {
        let mut ramps = self.ramps.clone();
        let followed = ramps.follow(&self.state, next, touched, now);
        let begun = followed.begun.iter().filter_map(|id| {
            // A stamp is always written.
            let since = serde_json::to_vec(&ramps.get(*id)?.since).ok()?;
            Some((key(*id), Some(since)))
        });
        let records = begun.chain(followed.dropped.iter().map(|id| (key(*id), None))).collect();
        Warming { ramps, followed, records }
    }

    /// Makes the steps that are due; their tables follow at leisure.
    pub(super) fn step_ramps(&mut self) {
        let now = clock::stamp();
        if self.ramps.next_due().is_none_or(|due| due > now.ns) {
            return;
        }
        let Moved { stepped, ended } = self.ramps.advance(&self.state, &now);
        let services = stepped.iter().chain(&ended).filter_map(|id| Some(self.state.backend(*id)?.0.id));
        let services: Vec<ServiceId> = services.collect();
        self.stale.extend(services);
        if ended.is_empty() {
            return;
        }
        let extras: Vec<_> = ended.iter().map(|id| (key(*id), None)).collect();
        // One that stays is found to be over at the next start.
        if let Err(error) = self.store.commit_batch(&self.state, Batch { extras: &extras, ..Batch::default() }) {
            tracing::warn!("the end of {} warm-ups is not saved: {error:#}", ended.len());
        }
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
                self.ramps.begin(id, warmup, since, &now);
                if self.ramps.get(id).is_some() {
                    continue;
                }
            }
            over.push((key, None));
        }
        if over.is_empty() {
            return Ok(());
        }
        let batch = Batch { extras: &over, ..Batch::default() };
        self.store.commit_batch(&self.state, batch).context("forgetting warm-ups that are over")
    }
}

fn key(id: BackendId) -> String {
    format!("{PREFIX}{}", id.0)
}
