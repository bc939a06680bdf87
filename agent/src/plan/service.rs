//! The table of one service: which backend has which slots.

use std::hash::{DefaultHasher, Hash, Hasher};

use sluice_common::{
    pick::mix,
    tables::{self, Balance as KernelBalance, MAX_DISTINCT},
};

use super::{
    affinity::{self, SlotCandidate},
    spread,
    table::SlotTable,
    weights::{self, Division, Shares, WeightedBackend},
};
use crate::{
    control::warmup::{Ramps, WHOLE},
    model::{
        Backend, Service, State,
        service::{Balance, OnNoBackend},
    },
};

/// A table that was built and not yet written.
#[derive(Clone, Debug, PartialEq)]
pub struct Built {
    /// Slots, then the list of distinct backends.
    pub entries: Vec<u32>,
    pub length: u32,
    pub distinct: u32,
    pub share_error: f64,
    pub spilled: Vec<u32>,
    /// In the order of the service's backends.
    pub backends: Vec<BuiltBackend>,
}

/// What one backend gets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BuiltBackend {
    pub effective_weight: u32,
    pub desired_share: f64,
    pub programmed_share: f64,
}

/// Builds the table that the service should have now.
pub fn build(state: &State, ramps: &Ramps, service: &Service) -> Built {
    let panic = state.panics(service);
    let parts = ramps.parts(service, |backend| state.is_open(backend) && backend.is_fit(panic));
    let weights = service.backends.iter().zip(&parts);
    let (shares, spilled) =
        divide(service, weights.map(|(backend, part)| u64::from(backend.weight) * u64::from(*part)));
    let table = match service.balance {
        Balance::Spread | Balance::Scatter | Balance::Random => spread::spread(&shares),
        Balance::Hash => {
            let (weights, _) = divide(service, service.backends.iter().map(|backend| backend.weight.into()));
            let places = service.backends.iter().zip(weights).zip(&shares);
            let candidates: Vec<_> = places
                .map(|((backend, weight), share)| SlotCandidate {
                    identity: identity(service, backend),
                    weight,
                    share: *share,
                })
                .collect();
            affinity::affinity(&candidates)
        }
    };
    finish(service, &parts, &shares, spilled, &table)
}

/// Shares of the service's backends for these weights, and the groups that spilled.
fn divide(service: &Service, weights: impl Iterator<Item = u64>) -> (Vec<u64>, Vec<usize>) {
    let groups: Vec<u64> = service.groups.iter().map(|group| u64::from(group.weight)).collect();
    let members = service.backends.iter().zip(weights);
    let members: Vec<WeightedBackend> =
        members.map(|(backend, weight)| WeightedBackend { group: backend.group as usize, weight }).collect();
    match weights::divide(&groups, &members) {
        Division::Open(Shares { shares, spilled }) => (shares, spilled),
        Division::Closed => (vec![0; members.len()], Vec::new()),
    }
}

fn finish(service: &Service, parts: &[u32], shares: &[u64], spilled: Vec<usize>, table: &SlotTable) -> Built {
    let id = |index: usize| service.backends[index].id.0;
    let mut slots = vec![0u32; service.backends.len()];
    for index in &table.slots {
        slots[*index as usize] += 1;
    }
    let distinct: Vec<u32> = (0..slots.len()).filter(|i| slots[*i] > 0).take(MAX_DISTINCT as usize).map(id).collect();
    let total: f64 = shares.iter().map(|share| *share as f64).sum();
    let length = table.slots.len();
    let ratio = |part: f64, whole: f64| if whole == 0.0 { 0.0 } else { part / whole };
    let figures = service.backends.iter().zip(parts).zip(shares).zip(&slots);
    let backends = figures
        .map(|(((backend, part), share), slots)| BuiltBackend {
            effective_weight: effective_weight(backend.weight, *part),
            desired_share: ratio(*share as f64, total),
            programmed_share: ratio(f64::from(*slots), length as f64),
        })
        .collect();
    Built {
        entries: table.slots.iter().map(|index| id(*index as usize)).chain(distinct.iter().copied()).collect(),
        length: length as u32,
        distinct: distinct.len() as u32,
        share_error: f64::from(table.share_error_ppb) / 1e9,
        spilled: spilled.iter().map(|group| *group as u32).collect(),
        backends,
    }
}

/// A part of a weight in millionths: at least 1 of what is not nothing.
fn effective_weight(weight: u32, part: u32) -> u32 {
    let millionths = u64::from(weight) * u64::from(part);
    let whole = u32::try_from(millionths / u64::from(WHOLE * WHOLE)).unwrap_or(u32::MAX);
    whole.max(u32::from(millionths > 0))
}

/// Equal for tables that steer alike, wherever they are.
pub fn fingerprint(word: tables::TableWord, entries: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (entries, word.length(), word.balance(), word.pass(), word.present()).hash(&mut hasher);
    hasher.finish()
}

impl Built {
    /// The word that puts this table in force from `base` on.
    pub fn word(&self, service: &Service, base: u32) -> tables::TableWord {
        tables::TableWord::new(base, self.length, self.distinct, balance(service), passes(service))
    }
}

fn balance(service: &Service) -> KernelBalance {
    match service.balance {
        Balance::Spread => KernelBalance::Spread,
        Balance::Random => KernelBalance::Random,
        Balance::Hash => KernelBalance::Hash,
        Balance::Scatter => KernelBalance::Scatter,
    }
}

fn passes(service: &Service) -> bool {
    match service.on_no_backend {
        OnNoBackend::Pass => true,
        OnNoBackend::Refuse => false,
    }
}

/// What `hash` knows a backend by: the same on every host, and for as long as it keeps its name. FNV-1a, mixed.
fn identity(service: &Service, backend: &Backend) -> u64 {
    let bytes = service.name.as_str().bytes().chain([b'/']).chain(backend.name.as_str().bytes());
    mix(bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
}
