//! The slot table, and the one rule by which slots are given out: largest remainder.

use std::cmp::Reverse;

/// The longest table, in slots, of a service of up to as many backends.
pub const MAX_SLOTS: usize = 4096;

/// The longest table of a service of `candidates` backends: [`MAX_SLOTS`], or as many as give each backend one.
pub fn longest(candidates: usize) -> usize {
    MAX_SLOTS.max(candidates.next_power_of_two())
}

/// Slots in the order in which they are used. No slots at all is a valid table: nobody may take a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotTable {
    /// Each slot names a candidate by its position in the list that the table was built from.
    pub slots: Vec<u32>,
    /// The largest difference between a candidate's share of the slots and its share of the traffic, in parts per
    /// billion of all traffic, rounded up: 0 means exact.
    pub share_error_ppb: u32,
}

impl SlotTable {
    /// A table of these slots, measured against the shares that were wanted.
    pub(super) fn new(slots: Vec<u32>, shares: &[u64]) -> SlotTable {
        let mut counts = vec![0; shares.len()];
        for &slot in &slots {
            counts[slot as usize] += 1;
        }
        SlotTable { share_error_ppb: share_error_ppb(&counts, shares), slots }
    }
}

/// Divides `seats` in proportion to `shares` by largest remainder (Hamilton's method): each gets the whole part of its
/// quota `seats * share / total`, and the seats left over go to the largest fractions, the earlier index first.
///
/// A positive share is never rounded to nothing while there are seats for all: those whose quota is below one get one
/// seat, and the others divide the rest. With fewer seats than positive shares, the largest shares get one each.
/// The result adds up to `seats`, or to 0 when every share is 0.
pub fn apportion(shares: &[u64], seats: u64) -> Vec<u64> {
    let mut seated = vec![0; shares.len()];
    let mut open: Vec<usize> = (0..shares.len()).filter(|&i| shares[i] > 0).collect();
    if open.len() as u64 >= seats {
        open.sort_by_key(|&i| Reverse(shares[i]));
        for &i in open.iter().take(seats as usize) {
            seated[i] = 1;
        }
        return seated;
    }

    // Giving one seat to a quota below one shrinks the quotas of the others, so look again until none is below one.
    let mut left = seats;
    let total = loop {
        let total = total(open.iter().map(|&i| shares[i]));
        let (enough, small): (Vec<_>, Vec<_>) = open.iter().partition(|&&i| quota(shares[i], left) >= total);
        for &i in &small {
            seated[i] = 1;
        }
        left -= small.len() as u64;
        open = enough;
        if small.is_empty() {
            break total;
        }
    };

    let divided = left;
    for &i in &open {
        seated[i] = (quota(shares[i], divided) / total) as u64;
        left -= seated[i];
    }
    open.sort_by_key(|&i| Reverse(quota(shares[i], divided) % total));
    for &i in open.iter().take(left as usize) {
        seated[i] += 1;
    }
    seated
}

/// The sum of shares, which need not fit 64 bits.
pub(super) fn total(shares: impl IntoIterator<Item = u64>) -> u128 {
    shares.into_iter().map(u128::from).sum()
}

/// The greatest common divisor; 0 only when both are 0.
pub(super) fn gcd<T: Copy + Default + PartialEq + std::ops::Rem<Output = T>>(a: T, b: T) -> T {
    let (mut a, mut b) = (a, b);
    while b != T::default() {
        (a, b) = (b, a % b);
    }
    a
}

/// A quota times the total, which keeps it whole.
fn quota(share: u64, seats: u64) -> u128 {
    u128::from(share) * u128::from(seats)
}

/// `max |count / length - share / total|`, in parts per billion, rounded up.
fn share_error_ppb(counts: &[u64], shares: &[u64]) -> u32 {
    const BILLION: u128 = 1_000_000_000;
    let length = total(counts.iter().copied());
    let total = total(shares.iter().copied());
    if length == 0 || total == 0 {
        return 0;
    }
    let apart = |(&count, &share): (&u64, &u64)| (u128::from(count) * total).abs_diff(u128::from(share) * length);
    let largest = counts.iter().zip(shares).map(apart).max().unwrap_or(0);
    (largest * BILLION).div_ceil(length * total) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn left_over_seats_go_to_the_largest_fractions() {
        assert_eq!(apportion(&[1, 1, 1], 100), [34, 33, 33]);
        assert_eq!(apportion(&[416, 338, 246], 10), [4, 3, 3]);
        assert_eq!(apportion(&[2, 0, 1], 10), [7, 0, 3]);
    }

    #[test]
    fn a_positive_share_keeps_a_seat() {
        assert_eq!(apportion(&[1_000_000, 1, 1], 256), [254, 1, 1]);
        assert_eq!(apportion(&[u64::MAX, u64::MAX, 1], 5), [2, 2, 1]);
    }

    #[test]
    fn with_too_few_seats_the_largest_shares_sit() {
        assert_eq!(apportion(&[1, 3, 2, 3], 3), [0, 1, 1, 1]);
        assert_eq!(apportion(&[1, 1], 0), [0, 0]);
    }

    #[test]
    fn no_share_means_no_seat() {
        assert_eq!(apportion(&[], 10), Vec::<u64>::new());
        assert_eq!(apportion(&[0, 0], 10), [0, 0]);
    }

    #[test]
    fn the_error_is_the_largest_difference_rounded_up() {
        assert_eq!(SlotTable::new(vec![0, 1], &[1, 1]).share_error_ppb, 0);
        assert_eq!(SlotTable::new(vec![0, 1], &[2, 1]).share_error_ppb, 166_666_667);
        assert_eq!(SlotTable::new(vec![0], &[u64::MAX, u64::MAX]).share_error_ppb, 500_000_000);
        assert_eq!(SlotTable::new(vec![], &[]).share_error_ppb, 0);
    }

    proptest! {
        #[test]
        fn seats_add_up_and_stay_within_one_of_the_quota(
            shares in prop::collection::vec(0..=u64::MAX, 1..40), seats in 0..5000_u64,
        ) {
            let seated = apportion(&shares, seats);
            let total = total(shares.iter().copied());
            prop_assert_eq!(seated.iter().sum::<u64>(), if total == 0 { 0 } else { seats });
            let open = shares.iter().filter(|&&share| share > 0).count() as u64;
            for (&share, &seated) in shares.iter().zip(&seated) {
                prop_assert!(share > 0 || seated == 0);
                prop_assert!(share == 0 || seated > 0 || open > seats);
            }
            let all_reach_one = shares.iter().all(|&share| share == 0 || quota(share, seats) >= total);
            for (&share, &seated) in shares.iter().zip(&seated).filter(|_| all_reach_one && total > 0) {
                prop_assert!((u128::from(seated) * total).abs_diff(quota(share, seats)) < total);
            }
        }
    }
}
