//! What proves a zero: where the kernel's counts of its backends stood when it was in force, kept with the zero itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{changes::Extras, steering::Steering};
use crate::{
    handle::{Before, Options, ZeroProof},
    model::{BackendId, Change, NodeId, State, Target, Touched, Zero},
    observe::clock,
    plan::Machine,
};

impl<M: Machine> Steering<M> {
    /// Keeps with every new zero what proves it, and drops the proofs of those that ended. Returns what the store keeps
    /// of that, in one transaction with the zero itself.
    pub(super) fn prove(&mut self, changes: &[Change], options: Options, acknowledged: Instant) -> Result<Extras> {
        let mut extras = Extras::new();
        for change in changes {
            match change {
                Change::Zero { target, .. } if !self.zeros.contains_key(target) => {
                    let proof = self.proof(target, acknowledged.duration_since(options.received))?;
                    extras.push((proof_key(target), Some(SavedProof::of(&proof)?)));
                    self.zeros.insert(target.clone(), Arc::new(proof));
                }
                Change::Restore { target } => {
                    extras.push((proof_key(target), None));
                    self.zeros.remove(target);
                }
                _ => {}
            }
        }
        Ok(extras)
    }

    /// Begins to count the backends that have become those of a zeroed target, and ends it for those that are gone.
    pub(super) fn prove_for_others(&mut self, touched: &Touched) -> Result<Extras> {
        let mut come: BTreeMap<Target, Vec<BackendId>> = BTreeMap::new();
        for service in touched.services.iter().filter(|_| !self.zeros.is_empty()) {
            let Some(service) = self.state.service_by_id(*service) else { continue };
            for backend in &service.backends {
                let node = self.state.node_by_id(backend.node).map(|node| Target::Node(node.name.clone()));
                let itself = Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
                for target in node.into_iter().chain([itself]) {
                    if self.zeros.get(&target).is_some_and(|proof| !proof.before.contains_key(&backend.id)) {
                        come.entry(target).or_default().push(backend.id);
                    }
                }
            }
        }
        let gone = |proof: &ZeroProof| touched.removed_backends.iter().any(|id| proof.before.contains_key(id));
        for (target, _) in self.zeros.iter().filter(|(_, proof)| gone(proof)) {
            come.entry(target.clone()).or_default();
        }
        let mut extras = Extras::new();
        for (target, ids) in come {
            let before = self.before(ids)?;
            if let Some(proof) = self.zeros.get_mut(&target) {
                let proof = Arc::make_mut(proof);
                proof.before.extend(before);
                proof.before.retain(|id, _| !touched.removed_backends.contains(id));
                extras.push((proof_key(&target), Some(SavedProof::of(proof)?)));
            }
        }
        Ok(extras)
    }

    /// A proof that begins now.
    fn proof(&self, target: &Target, programmed_in: Duration) -> Result<ZeroProof> {
        let (at, monotonic_ns) = (Timestamp::now(), clock::monotonic_ns());
        Ok(ZeroProof { at, monotonic_ns, before: self.before(backends_of(&self.state, target))?, programmed_in })
    }

    /// What backends have counted so far.
    fn before(&self, ids: Vec<BackendId>) -> Result<BTreeMap<BackendId, Before>> {
        let since = clock::monotonic_ns();
        let counters = self.machine.counters(&ids)?;
        Ok(ids.into_iter().zip(counters).map(|(id, held)| (id, Before { picked: held.picked, since })).collect())
    }

    /// The proofs of the zeros that this agent found: as an earlier agent saved them, or beginning now. `adopted`: the
    /// kernel's tables are those that it counted in.
    pub(super) fn load_proofs(&mut self, adopted: bool) -> Result<()> {
        let boot = clock::boot_id();
        for (target, zero) in zeroed(&self.state) {
            let saved = self.store.get_extra(&proof_key(&target))?;
            let saved: Option<SavedProof> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // One from before this zero, or from before a boot, proves nothing.
            let saved = saved.filter(|saved| adopted && saved.boot == boot && saved.at >= zero.since);
            let proof = match saved {
                Some(saved) => saved.into(),
                None => self.proof(&target, Duration::ZERO)?,
            };
            self.zeros.insert(target, Arc::new(proof));
        }
        Ok(())
    }

    /// Forgets the proofs of what is not zeroed any more.
    pub(super) fn drop_proofs(&mut self) {
        let zeros = std::mem::take(&mut self.zeros);
        self.zeros = zeros.into_iter().filter(|(target, _)| is_zeroed(&self.state, target)).collect();
    }
}

/// A [`ZeroProof`] as the store holds it. Monotonic time has a meaning within one boot only.
#[derive(Serialize, Deserialize)]
struct SavedProof {
    at: Timestamp,
    monotonic_ns: u64,
    before: BTreeMap<BackendId, Before>,
    programmed_us: u64,
    boot: String,
}

impl SavedProof {
    /// As the store keeps it.
    fn of(proof: &ZeroProof) -> Result<Vec<u8>> {
        let saved = Self {
            at: proof.at,
            monotonic_ns: proof.monotonic_ns,
            before: proof.before.clone(),
            programmed_us: proof.programmed_in.as_micros() as u64,
            boot: clock::boot_id(),
        };
        serde_json::to_vec(&saved).context("writing the proof of a zero")
    }
}

impl From<SavedProof> for ZeroProof {
    fn from(saved: SavedProof) -> Self {
        Self {
            at: saved.at,
            monotonic_ns: saved.monotonic_ns,
            before: saved.before,
            programmed_in: Duration::from_micros(saved.programmed_us),
        }
    }
}

fn proof_key(target: &Target) -> String {
    format!("proof/{target}")
}

fn zeroed(state: &State) -> Vec<(Target, Arc<Zero>)> {
    let nodes = state.nodes().filter_map(|node| Some((Target::Node(node.name.clone()), node.zero.clone()?)));
    let backends = state.services().flat_map(|service| {
        service.backends.iter().filter_map(|backend| {
            let target = Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
            Some((target, backend.zero.clone()?))
        })
    });
    nodes.chain(backends).collect()
}

pub(super) fn is_zeroed(state: &State, target: &Target) -> bool {
    match target {
        Target::Node(node) => state.node(node.as_str()).is_some_and(|node| node.zero.is_some()),
        Target::Backend { service, backend } => state
            .service(service.as_str())
            .is_some_and(|service| service.backends.iter().any(|held| held.name == *backend && held.zero.is_some())),
    }
}

fn backends_of(state: &State, target: &Target) -> Vec<BackendId> {
    let mut ids: Vec<BackendId> = match target {
        Target::Node(node) => {
            let node = state.node(node.as_str()).map_or(NodeId(0), |node| node.id);
            state.node_backends(node).map(|(_, backend)| backend.id).collect()
        }
        Target::Backend { service, backend } => state
            .service(service.as_str())
            .and_then(|service| service.backends.iter().find(|held| held.name == *backend))
            .map(|backend| backend.id)
            .into_iter()
            .collect(),
    };
    ids.sort_unstable();
    ids
}
