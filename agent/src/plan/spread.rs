//! The table of `balance: spread`: connections step through the slots in order, so the order is what makes 5 % one in
//! twenty at once rather than on average.

use super::order::lay_out;
use super::table::{SlotTable, apportion, gcd, longest, total};

/// Lengths tried where the shares have no short exact period. The first that serves every share well enough is taken.
const LENGTHS: [u64; 4] = [256, 512, 1024, 2048];

/// A share is served well enough when it is off by no more than this part of itself.
const RELATIVE_ERROR: u128 = 10;

/// Lays out the slots of these shares, so that every candidate's connections are spread over the cycle as evenly as
/// can be: see [`super::order`] for the promise.
///
/// The length is the exact period (the sum of the shares in lowest terms) while that is at most [`longest`]. Beyond,
/// it is the shortest of 256, 512, 1024 and 2048 slots that leaves every share within a tenth of itself, rounded by
/// [`apportion`], and otherwise [`longest`]. A positive share always keeps a slot: a share of one in a million gets one
/// slot of 4096, 244 times too much, and the table's error says so (243,141 parts per billion of all traffic). The
/// promise then holds for the rounded shares.
///
/// A share of 0 has no slot. When every share is 0 the table is empty.
pub fn spread(shares: &[u64]) -> SlotTable {
    let counts = slot_counts(shares);
    let (open, counts): (Vec<u32>, Vec<u32>) =
        (0..).zip(&counts).filter(|&(_, &count)| count > 0).map(|(i, &count)| (i, count as u32)).unzip();
    let slots = lay_out(&counts).into_iter().map(|slot| open[slot as usize]).collect();
    SlotTable::new(slots, shares)
}

fn slot_counts(shares: &[u64]) -> Vec<u64> {
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    let all = total(shares.iter().copied());
    let longest = longest(shares.iter().filter(|&&share| share > 0).count());
    if all / u128::from(divisor) <= longest as u128 {
        return shares.iter().map(|share| share / divisor).collect();
    }
    let serves = |counts: &[u64], length: u64| {
        shares.iter().zip(counts).all(|(&share, &count)| {
            let quota = u128::from(share) * u128::from(length);
            (u128::from(count) * all).abs_diff(quota) <= quota / RELATIVE_ERROR
        })
    };
    let mut counts = Vec::new();
    for length in LENGTHS.into_iter().chain([longest as u64]) {
        counts = apportion(shares, length);
        if serves(&counts, length) {
            break;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::order::WINDOW;
    use super::*;
    use crate::plan::table::MAX_SLOTS;
    use proptest::prelude::*;

    fn counts(table: &SlotTable, candidates: usize) -> Vec<u64> {
        let mut counts = vec![0; candidates];
        for &slot in &table.slots {
            counts[slot as usize] += 1;
        }
        counts
    }

    /// The most that any `window` consecutive connections are off from a candidate's share of the slots.
    fn worst(table: &SlotTable, candidates: usize, window: usize) -> f64 {
        let counts = counts(table, candidates);
        let mut held = vec![0.0; candidates];
        let mut worst = 0.0_f64;
        if table.slots.is_empty() {
            return worst;
        }
        for at in 0..window + table.slots.len() {
            held[table.slots[at % table.slots.len()] as usize] += 1.0;
            if at >= window {
                held[table.slots[(at - window) % table.slots.len()] as usize] -= 1.0;
            }
            if at + 1 >= window {
                for i in 0..candidates {
                    let share = counts[i] as f64 / table.slots.len() as f64;
                    worst = worst.max((held[i] - window as f64 * share).abs());
                }
            }
        }
        worst
    }

    #[test]
    fn a_zero_share_has_no_slot() {
        let table = spread(&[80, 20, 0]);
        assert_eq!(table, SlotTable { slots: vec![0, 0, 1, 0, 0], share_error_ppb: 0 });
        assert_eq!(spread(&[0, 20, 80]).slots, [2, 2, 1, 2, 2]);
    }

    #[test]
    fn one_backend_has_one_slot() {
        assert_eq!(spread(&[17]), SlotTable { slots: vec![0], share_error_ppb: 0 });
    }

    #[test]
    fn no_share_at_all_is_an_empty_table() {
        assert_eq!(spread(&[0, 0, 0]), SlotTable::default());
        assert_eq!(spread(&[]), SlotTable::default());
    }

    #[test]
    fn a_canary_of_5_percent_is_one_in_any_twenty() {
        let table = spread(&[95, 5]);
        assert_eq!(counts(&table, 2), [19, 1]);
        assert_eq!(worst(&table, 2, 20), 0.0);
    }

    #[test]
    fn two_backends_are_never_off_by_one_in_any_window() {
        for shares in [[80, 20], [95, 5], [1000, 1], [7, 5], [611, 389]] {
            let table = spread(&shares);
            assert!((1..=table.slots.len()).all(|window| worst(&table, 2, window) < 1.0), "{shares:?}");
        }
    }

    #[test]
    fn one_in_a_thousand_is_exact() {
        let table = spread(&[1000, 1]);
        assert_eq!((counts(&table, 2), table.share_error_ppb), (vec![1000, 1], 0));
    }

    #[test]
    fn one_in_a_million_gets_the_smallest_slot_there_is_and_the_table_says_so() {
        let table = spread(&[999_999, 1]);
        assert_eq!(counts(&table, 2), [4095, 1]);
        assert_eq!(table.share_error_ppb, 243_141);
    }

    #[test]
    fn odd_weights_cost_256_slots() {
        let table = spread(&[997, 1003, 1009, 991, 1013, 983, 1019, 977, 1021, 971]);
        assert_eq!(table.slots.len(), 256);
        assert!(table.share_error_ppb < 2_000_000);
        assert!(worst(&table, 10, WINDOW) <= 1.0);
    }

    #[test]
    fn a_thousand_equal_backends_take_turns() {
        let table = spread(&[100; 1000]);
        assert_eq!(counts(&table, 1000), [1; 1000]);
    }

    #[test]
    fn the_largest_shares_do_not_overflow() {
        assert_eq!(spread(&[u64::MAX, u64::MAX]).slots.len(), 2);
        assert_eq!(spread(&[u64::MAX, u64::MAX - 1]).slots.len(), 256);
    }

    proptest! {
        #[test]
        fn short_periods_are_exact_and_even(shares in prop::collection::vec(0..130_u64, 1..30)) {
            let table = spread(&shares);
            let divisor = shares.iter().copied().fold(0, gcd).max(1);
            let reduced: Vec<u64> = shares.iter().map(|share| share / divisor).collect();
            prop_assert_eq!(counts(&table, shares.len()), reduced);
            prop_assert_eq!(table.share_error_ppb, 0);
            prop_assert!(worst(&table, shares.len(), WINDOW) <= 1.0 + 1e-9);
        }

        #[test]
        fn long_periods_are_bounded_and_serve_every_share(shares in prop::collection::vec(0..1_000_000_u64, 2..40)) {
            let table = spread(&shares);
            prop_assert!(table.slots.len() <= MAX_SLOTS);
            let counts = counts(&table, shares.len());
            prop_assert!(shares.iter().zip(&counts).all(|(&share, &count)| (share > 0) == (count > 0)));
            let (all, length) = (shares.iter().sum::<u64>() as f64, table.slots.len() as f64);
            for (&share, &count) in shares.iter().zip(&counts) {
                let (wanted, has) = (share as f64 / all, count as f64 / length);
                prop_assert!((wanted - has).abs() <= f64::from(table.share_error_ppb) / 1e9 + 1e-12);
                prop_assert!((wanted - has).abs() <= wanted / 10.0 + 1e-12 || length == MAX_SLOTS as f64);
            }
            prop_assert!(table.slots.is_empty() || worst(&table, shares.len(), WINDOW) <= 1.0 + 1e-9);
        }
    }

    #[test]
    fn more_backends_than_the_usual_longest_table_all_get_a_slot() {
        let table = spread(&[1; 10_000]);
        assert_eq!((table.slots.len(), table.share_error_ppb), (10_000, 0));
        let odd: Vec<u64> = (1..=5_000).collect();
        let table = spread(&odd);
        assert_eq!(table.slots.len(), 8192);
        assert_eq!(table.slots.iter().collect::<std::collections::BTreeSet<_>>().len(), 5_000);
    }
}
