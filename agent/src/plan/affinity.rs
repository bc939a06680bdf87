//! The table of `balance: hash`: a client's hash picks a slot, so that a client stays with a backend for as long as
//! the slot does. What matters is how few slots move when backends, weights or states change.
//!
//! Slots are dealt in a race. Every backend has an order of its own of all slots and looks at them one after the other;
//! it takes a slot that is still free, until its quota is full. Looks are timed as in weighted rendezvous hashing: if
//! each backend drew an exponential time of rate `weight` for each slot and the earliest won, backend b's k-th earliest
//! of L slots would come, on average, at `(1/L + 1/(L-1) + ... + 1/(L-k+1)) / weight(b)` (Rényi 1953). Using that average
//! for the draw leaves out most of the luck, and the quota the rest, so shares are exact to a slot.
//!
//! There are two deals, the second of which moves only what it must:
//!
//! 1. by configured weights, on an empty table;
//! 2. by the shares that hold now: a backend with more slots than its quota gives up those that come last in its order,
//!    and the others race for these. Zeroed, unhealthy and warming backends have less than their weight.
//!
//! So a backend that is zeroed or warming moves as few slots as rounded shares allow: its own clients leave, and come
//! back when it does. A change of weight or of the list moves some more, because the race has other winners: 15 % more
//! for the removal of one of ten backends, where Maglev (Eisenbud et al., NSDI 2016) with quotas moves 23 to 60 % more.
//! The table depends on the candidates alone, not on their order in the list nor on the past: hosts agree, and a restart
//! changes nothing.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use sluice_common::pick::mix;

use super::table::{SlotTable, apportion, longest};

/// The length up to [`FEW`] candidates: a slot is 0.1 % of the clients.
const SLOTS_FOR_FEW: usize = 1024;
/// Above, a table has [`longest`] slots. The step depends on the length of the list, zeroed backends included, so
/// clients are dealt anew when a list grows past it and never because of a state.
const FEW: usize = 64;

const FREE: u32 = u32::MAX;

/// One backend of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotCandidate {
    /// A hash of the backend's name: what makes its place in the table stable.
    pub identity: u64,
    /// Its share by configured weights alone. Where that is not known, the same as `share`.
    pub weight: u64,
    /// Its share now, which is what the table gives it. 0 has no slot.
    pub share: u64,
}

/// Deals slots to candidates. Each has its share of the slots rounded by [`apportion`]: exact to a slot, and at least
/// one slot for a positive share while there are slots for all. When every share is 0 the table is empty.
pub fn affinity(candidates: &[SlotCandidate]) -> SlotTable {
    let shares: Vec<u64> = candidates.iter().map(|candidate| candidate.share).collect();
    let length = match candidates.len() {
        _ if shares.iter().all(|&share| share == 0) => 0,
        0..=FEW => SLOTS_FOR_FEW,
        candidates => longest(candidates),
    };
    // Ties go to the lower identity, so that the order of the list does not matter.
    let mut by_identity: Vec<u32> = (0..candidates.len() as u32).collect();
    by_identity.sort_by_key(|&i| candidates[i as usize].identity);
    let column = |of: fn(&SlotCandidate) -> u64| -> Vec<u64> {
        by_identity.iter().map(|&i| of(&candidates[i as usize])).collect()
    };

    let mut race = Race::new(&column(|candidate| candidate.identity), length);
    race.deal(&column(|candidate| candidate.weight));
    race.deal(&column(|candidate| candidate.share));
    let slots = race.owners.iter().map(|&owner| by_identity[owner as usize]).collect();
    SlotTable::new(slots, &shares)
}

struct Race {
    /// Who has which slot.
    owners: Vec<u32>,
    /// How many slots each backend has.
    owned: Vec<u64>,
    orders: Vec<Order>,
    /// When a backend of rate 1 has its k-th look.
    times: Vec<u128>,
}

/// A backend that is short of slots, ordered by the time of its next look and then by identity.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Runner {
    due: u128,
    backend: usize,
    looks: usize,
    /// Time from look to look, relative to the others: inverse to the share.
    pace: u128,
}

impl Race {
    fn new(identities: &[u64], length: usize) -> Race {
        let mut now = 0;
        let next_look = |left| {
            now += (1 << 32) / left as u128;
            now
        };
        Race {
            owners: vec![FREE; length],
            owned: vec![0; identities.len()],
            orders: identities.iter().map(|&identity| Order::new(identity, length)).collect(),
            times: (1..=length).rev().map(next_look).collect(),
        }
    }

    /// Brings every backend to its quota of these shares. Nothing moves when all of them are 0.
    fn deal(&mut self, shares: &[u64]) {
        let largest = shares.iter().copied().max().unwrap_or(0);
        if largest == 0 || self.owners.is_empty() {
            return;
        }
        let quotas = apportion(shares, self.owners.len() as u64);
        let mut short = BinaryHeap::new();
        for (backend, &quota) in quotas.iter().enumerate() {
            self.give_up(backend, quota);
            if self.owned[backend] < quota {
                let pace = (u128::from(largest) << 20) / u128::from(shares[backend]);
                short.push(Reverse(Runner { due: self.times[0] * pace, backend, looks: 0, pace }));
            }
        }
        self.claim(short, &quotas);
    }

    fn give_up(&mut self, backend: usize, quota: u64) {
        let mut last = self.owners.len();
        while self.owned[backend] > quota {
            last -= 1;
            let slot = self.orders[backend].slot(last);
            if self.owners[slot] == backend as u32 {
                self.owners[slot] = FREE;
                self.owned[backend] -= 1;
            }
        }
    }

    fn claim(&mut self, mut short: BinaryHeap<Reverse<Runner>>, quotas: &[u64]) {
        while let Some(mut first) = short.peek_mut() {
            let Reverse(runner) = &mut *first;
            let backend = runner.backend;
            let slot = self.orders[backend].slot(runner.looks);
            if self.owners[slot] == FREE {
                self.owners[slot] = backend as u32;
                self.owned[backend] += 1;
            }
            if self.owned[backend] == quotas[backend] {
                PeekMut::pop(first);
            } else {
                // A slot that is taken stays taken, so it may be passed over at once. There is a free one left: quotas
                // add up to the table.
                while self.owners[self.orders[backend].slot(runner.looks)] != FREE {
                    runner.looks += 1;
                }
                runner.due = self.times[runner.looks] * runner.pace;
            }
        }
    }
}

/// A backend's order of all slots: a permutation of `0..length`, where length is a power of two. Each step maps the
/// low bits one to one, whatever the constants.
struct Order {
    start: usize,
    factors: [usize; 2],
    bits: u32,
}

impl Order {
    fn new(identity: u64, length: usize) -> Order {
        let (first, second) = (mix(identity), mix(!identity));
        let factors = [(first >> 32) as usize | 1, second as usize | 1];
        Order { start: first as usize, factors, bits: length.checked_ilog2().unwrap_or(0) }
    }

    fn slot(&self, place: usize) -> usize {
        let low = (1 << self.bits) - 1;
        let mut slot = self.start.wrapping_add(place) & low;
        for factor in self.factors {
            slot = slot.wrapping_mul(factor) & low;
            slot ^= slot >> (self.bits / 2);
        }
        slot
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::table::MAX_SLOTS;
    use proptest::prelude::*;

    fn candidates(weights: &[u64]) -> Vec<SlotCandidate> {
        let candidate = |(name, &weight)| SlotCandidate { identity: mix(name), weight, share: weight };
        (1..).zip(weights).map(candidate).collect()
    }

    fn counts(table: &SlotTable, candidates: usize) -> Vec<u64> {
        let mut counts = vec![0; candidates];
        for &slot in &table.slots {
            counts[slot as usize] += 1;
        }
        counts
    }

    /// Slots that moved, and how many had to: those that some backends have fewer of.
    fn moves(before: &[SlotCandidate], after: &[SlotCandidate]) -> (u64, u64) {
        let (old, new) = (affinity(before), affinity(after));
        let owner = |slot: u32, of: &[SlotCandidate]| of[slot as usize].identity;
        let moved = old.slots.iter().zip(&new.slots).filter(|&(&a, &b)| owner(a, before) != owner(b, after)).count();
        let kept = |identity| {
            let place = after.iter().position(|candidate| candidate.identity == identity);
            place.map_or(0, |place| counts(&new, after.len())[place])
        };
        let had = counts(&old, before.len());
        let forced = before.iter().zip(had).map(|(candidate, had)| had.saturating_sub(kept(candidate.identity))).sum();
        (moved as u64, forced)
    }

    /// Little more than what had to move: 1.3 times that and 6 % of the clients in the worst case.
    fn little_more((moved, forced): (u64, u64)) -> bool {
        moved as f64 <= forced as f64 * 1.3 + SLOTS_FOR_FEW as f64 * 0.06
    }

    #[test]
    fn shares_are_exact_to_a_slot() {
        let table = affinity(&candidates(&[95, 5]));
        assert_eq!(counts(&table, 2), [973, 51]);
        assert_eq!(table.share_error_ppb, 195_313);
    }

    #[test]
    fn one_backend_has_every_slot() {
        assert_eq!(affinity(&candidates(&[7])), SlotTable { slots: vec![0; 1024], share_error_ppb: 0 });
    }

    #[test]
    fn no_share_at_all_is_an_empty_table() {
        let mut zeroed = candidates(&[80, 20]);
        zeroed.iter_mut().for_each(|candidate| candidate.share = 0);
        assert_eq!(affinity(&zeroed), SlotTable::default());
        assert_eq!(affinity(&[]), SlotTable::default());
    }

    #[test]
    fn every_backend_of_many_has_a_slot() {
        let table = affinity(&candidates(&[1; 65]));
        assert_eq!(table.slots.len(), MAX_SLOTS);
        assert!(counts(&table, 65).iter().all(|count| (63..=64).contains(count)));
        assert!(
            counts(&affinity(&candidates(&[&[1_000_000][..], &[1; 40]].concat())), 41).iter().all(|&count| count > 0)
        );
        assert_eq!(affinity(&candidates(&[1; 5000])).slots.len(), 8192);
    }

    #[test]
    fn an_order_names_every_slot_once() {
        for identity in 0..50 {
            let order = Order::new(identity, SLOTS_FOR_FEW);
            let mut slots: Vec<usize> = (0..SLOTS_FOR_FEW).map(|place| order.slot(place)).collect();
            slots.sort_unstable();
            assert!(slots.into_iter().eq(0..SLOTS_FOR_FEW));
        }
    }

    #[test]
    fn removing_one_of_ten_moves_a_fifth_more_than_its_own_on_average() {
        let all: Vec<SlotCandidate> = candidates(&[100; 100]);
        let trial = |ten: &[SlotCandidate]| moves(ten, &ten[1..]);
        let (moved, forced) = all.chunks(10).map(trial).fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        assert!(moved * 5 <= forced * 6, "{moved} of {forced}");
    }

    proptest! {
        #[test]
        fn shares_are_rounded_by_largest_remainder_and_zero_has_no_slot(
            shares in prop::collection::vec(0..1_000_000_u64, 1..30), weight in 0..100_u64,
        ) {
            let mut of = candidates(&shares);
            of[0].weight = weight;
            let counts = counts(&affinity(&of), of.len());
            let open = shares.iter().any(|&share| share > 0);
            let quotas = apportion(&shares, if open { SLOTS_FOR_FEW as u64 } else { 0 });
            for i in 0..of.len() {
                prop_assert!(counts[i].abs_diff(quotas[i]) <= 1, "only equal remainders may swap");
                prop_assert_eq!(counts[i] == 0, shares[i] == 0);
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(weights in prop::collection::vec(0..5_u64, 1..20)) {
            let listed = candidates(&weights);
            let reversed: Vec<SlotCandidate> = listed.iter().rev().copied().collect();
            prop_assert_eq!(moves(&listed, &reversed), (0, 0));
        }

        #[test]
        fn zeroing_or_warming_a_backend_moves_what_it_must_and_nothing_else(
            weights in prop::collection::vec(1..1000_u64, 2..30), which: prop::sample::Index, percent in 0..100_u64,
        ) {
            let before = candidates(&weights);
            let mut after = before.clone();
            after[which.index(weights.len())].share = before[which.index(weights.len())].weight * percent / 100;
            let (moved, forced) = moves(&before, &after);
            prop_assert_eq!(moved, forced);
        }

        #[test]
        fn removing_a_backend_moves_little_more_than_its_slots(
            weights in prop::collection::vec(1..100_u64, 2..20), which: prop::sample::Index,
        ) {
            let before = candidates(&weights);
            let mut after = before.clone();
            after.remove(which.index(weights.len()));
            prop_assert!(little_more(moves(&before, &after)));
        }

        #[test]
        fn changing_a_weight_moves_little_more_than_the_difference(
            weights in prop::collection::vec(1..100_u64, 2..20), which: prop::sample::Index, weight in 0..200_u64,
        ) {
            let before = candidates(&weights);
            let mut changed = weights.clone();
            changed[which.index(weights.len())] = weight;
            prop_assert!(little_more(moves(&before, &candidates(&changed))));
        }
    }
}
