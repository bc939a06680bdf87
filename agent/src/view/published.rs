//! What the engine has done, as immutable values: readers never hold a table that can be written, and never wait for a
//! writer.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{history::History, share::WindowPicks};
use crate::{
    control::{
        attachment::{Missing, Unattached},
        warmup::Ramps,
    },
    model::{BackendId, Service, ServiceId, State, Target, document::DocumentKey},
    plan::service::Built,
};

/// Desired and programmed state at one instant.
#[derive(Clone, Debug)]
pub struct Published {
    pub state: State,
    /// What the kernel acknowledged, by service id.
    pub programmed: imbl::OrdMap<ServiceId, Arc<ProgrammedService>>,
    pub zeros: imbl::OrdMap<Target, Arc<ZeroProof>>,
    /// Backends that are warming up.
    pub ramps: Ramps,
    pub ready: AgentReadiness,
    /// Of what should be attached and pinned.
    pub missing: Missing,
    /// Files, and documents of files, that are not in force, with the reasons.
    pub problems: imbl::OrdMap<(PathBuf, Option<DocumentKey>), String>,
    pub history: History,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentReadiness {
    Ready,
    /// With the reason.
    NotReady(String),
}

/// What proves that a zeroed target gets no new connection.
#[derive(Clone, Debug)]
pub struct ZeroProof {
    pub at: Timestamp,
    /// CLOCK_MONOTONIC ns, read after the kernel had the zero. A pick that the zero did not stop carries an earlier time,
    /// because a pick reads the clock before it checks the state.
    pub monotonic_ns: u64,
    /// What each backend of the target had counted then, or later when it joined the target.
    pub before: BTreeMap<BackendId, Before>,
    /// From the request to the kernel's acknowledgement.
    pub programmed_in: Duration,
    /// When, since the zero, connections may have gone by unsteered and uncounted.
    pub unattached: Option<Unattached>,
}

/// Where the count of one backend of a zeroed target begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Before {
    pub picked: u64,
    /// CLOCK_MONOTONIC ns, read before `picked`.
    pub since: u64,
}

/// The table of one service as the kernel holds it.
#[derive(Clone, Debug)]
pub struct ProgrammedService {
    /// Generation of the service that this table was built from.
    pub generation: u64,
    pub since: Timestamp,
    /// Number of slots; 0 is the explicit empty table.
    pub length: u32,
    /// Largest difference between a desired and a programmed share, 0..=1.
    pub share_error: f64,
    /// Groups without an open backend whose share went to the others, as indexes into the service's groups.
    pub spilled: Vec<u32>,
    /// In the order of the service's backends at that generation.
    pub backends: Vec<ProgrammedBackend>,
}

impl ProgrammedService {
    /// The picks with which the observed shares of the service's next table begin, when its backends have counted
    /// `picked`. `None`: with none, because another document or other open backends are something else to observe.
    pub fn picks_before(&self, service: &Service, table: &Built, picked: &[u64]) -> Option<Vec<WindowPicks>> {
        let mut backends = self.backends.iter().zip(&service.backends).zip(&table.backends);
        let goes_on = self.generation == service.generation
            && self.backends.len() == service.backends.len()
            && backends.all(|((before, backend), after)| {
                before.id == backend.id && (before.programmed_share > 0.0) == (after.programmed_share > 0.0)
            });
        goes_on.then(|| WindowPicks::of(self.backends.iter().zip(picked.iter().copied())))
    }
}

#[derive(Clone, Debug)]
pub struct ProgrammedBackend {
    pub id: BackendId,
    /// Weight after zero, health and warm-up; 0 when it takes nothing.
    pub effective_weight: u32,
    /// Share that the document asks for, 0..=1, groups and spill included.
    pub desired_share: f64,
    /// Slots of this backend over the length of the table.
    pub programmed_share: f64,
    /// `picked` when this table became current.
    pub picked_before: u64,
    /// Picks from tables before this one that the observed share goes back to.
    pub earlier: WindowPicks,
}
