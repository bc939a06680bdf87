//! What proves a zero: where the kernel's counts of its backends stood when it was in force, kept with the zero itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::event_loop::Engine;
use crate::{
    control::attachment::Unattached,
    host::clock,
    model::{BackendId, Change, Target, Touched},
    plan::DataPlane,
    source::store::ExtraRecord,
    view::published::{Before, ZeroProof},
};

impl<M: DataPlane> Engine<M> {
    /// Keeps with every new zero what proves it, drops the proofs of those that ended, and follows the backends of those
    /// that go on. Returns what the store keeps of that, in one transaction with the zero itself.
    pub(super) fn prove(
        &mut self,
        touched: &Touched,
        changes: &[Change],
        received: Instant,
        acknowledged: Instant,
    ) -> Result<Vec<ExtraRecord>> {
        let mut extras = self.prove_for_others(touched)?;
        for change in changes {
            match change {
                Change::Zero { target, .. } if !self.zeros.contains_key(target) => {
                    let proof = self.proof(target, acknowledged.saturating_duration_since(received))?;
                    extras.push((proof_key(target), Some(SavedProof::of(&proof, self.machine.counter_table())?)));
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
    fn prove_for_others(&mut self, touched: &Touched) -> Result<Vec<ExtraRecord>> {
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
        let gone: BTreeSet<BackendId> = touched.removed_backends.iter().copied().collect();
        let loses = |proof: &ZeroProof| proof.before.keys().any(|id| gone.contains(id));
        for (target, _) in self.zeros.iter().filter(|(_, proof)| !gone.is_empty() && loses(proof)) {
            come.entry(target.clone()).or_default();
        }
        let mut extras = Vec::new();
        for (target, ids) in come {
            let before = self.before(ids)?;
            if let Some(proof) = self.zeros.get_mut(&target) {
                let proof = Arc::make_mut(proof);
                proof.before.extend(before);
                proof.before.retain(|id, _| !gone.contains(id));
                extras.push((proof_key(&target), Some(SavedProof::of(proof, self.machine.counter_table())?)));
            }
        }
        Ok(extras)
    }

    /// A proof that begins now.
    fn proof(&self, target: &Target, programmed_in: Duration) -> Result<ZeroProof> {
        let (at, monotonic_ns) = (Timestamp::now(), clock::monotonic_ns());
        let before = self.before(self.state.backends_of(target))?;
        Ok(ZeroProof { at, monotonic_ns, before, programmed_in, unattached: None })
    }

    /// What backends have counted so far.
    fn before(&self, ids: Vec<BackendId>) -> Result<BTreeMap<BackendId, Before>> {
        let since = self.machine.mark();
        let counters = self.machine.counters(&ids)?;
        Ok(ids.into_iter().zip(counters).map(|(id, held)| (id, Before { picked: held.picked, since })).collect())
    }

    /// The proofs of the zeros that this agent found: as an earlier agent saved them, or beginning now. Returns those that
    /// the store is to have. `adopted`: the kernel's tables are those that it counted in.
    pub(super) fn load_proofs(&mut self, adopted: bool) -> Result<Vec<ExtraRecord>> {
        let boot = clock::boot_id();
        let mut made = Vec::new();
        for (target, zero) in self.state.zeroed() {
            let saved = self.store.get_extra(&proof_key(&target))?;
            let saved: Option<SavedProof> = saved.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            // One from before this zero, or from before a boot, proves nothing.
            let saved = saved.filter(|saved| saved.boot == boot && saved.at >= zero.since);
            let proof = match saved {
                // An agent may have been killed when it had made new tables and no proofs yet.
                Some(saved) if adopted && saved.table.is_none_or(|table| table == self.machine.counter_table()) => {
                    saved.into()
                }
                saved => {
                    let new = self.proof(&target, Duration::ZERO)?;
                    // What the saved one counted went with the tables, and nothing counted until there were others. Said at
                    // once: an agent that is killed after this leaves no proof that says less.
                    let proof = match saved.map(|saved| saved.at) {
                        Some(at) => {
                            let lost = Unattached { from: Timestamp::UNIX_EPOCH, to: new.at };
                            ZeroProof { at, unattached: lost.after(at), ..new }
                        }
                        None => new,
                    };
                    made.push((proof_key(&target), Some(SavedProof::of(&proof, self.machine.counter_table())?)));
                    proof
                }
            };
            self.zeros.insert(target, Arc::new(proof));
        }
        Ok(made)
    }

    /// Notes that for a time connections may have gone by uncounted. Returns what the store keeps of that.
    pub(super) fn prove_less(&mut self, unattached: Unattached) -> Result<Vec<ExtraRecord>> {
        let mut extras = Vec::new();
        let targets: Vec<Target> = self.zeros.keys().cloned().collect();
        for target in targets {
            let Some(proof) = self.zeros.get_mut(&target) else { continue };
            let Some(since) = unattached.after(proof.at) else { continue };
            let proof = Arc::make_mut(proof);
            proof.unattached = Some(proof.unattached.map_or(since, |before| before.and(since)));
            extras.push((proof_key(&target), Some(SavedProof::of(proof, self.machine.counter_table())?)));
        }
        Ok(extras)
    }

    /// Forgets the proofs of what is not zeroed any more.
    pub(super) fn drop_proofs(&mut self) {
        let zeros = std::mem::take(&mut self.zeros);
        self.zeros = zeros.into_iter().filter(|(target, _)| self.state.is_zeroed(target)).collect();
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
    #[serde(default)]
    unattached: Option<Unattached>,
    /// The one that it counts in; not known of former versions.
    #[serde(default)]
    table: Option<u32>,
}

impl SavedProof {
    /// As the store keeps it.
    fn of(proof: &ZeroProof, table: u32) -> Result<Vec<u8>> {
        let saved = Self {
            at: proof.at,
            monotonic_ns: proof.monotonic_ns,
            before: proof.before.clone(),
            programmed_us: proof.programmed_in.as_micros() as u64,
            boot: clock::boot_id(),
            unattached: proof.unattached,
            table: Some(table),
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
            unattached: saved.unattached,
        }
    }
}

fn proof_key(target: &Target) -> String {
    format!("proof/{target}")
}
