//! The table of `balance: spread`: connections step through the slots in order, so the order is what makes 5 % one in
//! twenty at once rather than on average.

use super::order::lay_out;
use super::table::{MAX_SLOTS, Table, apportion, gcd, total};

/// Lengths tried where the shares have no short exact period. The first that serves every share well enough is taken.
const LENGTHS: [u64; 5] = [256, 512, 1024, 2048, MAX_SLOTS as u64];

/// A share is served well enough when it is off by no more than this part of itself.
const RELATIVE_ERROR: u128 = 10;

/// Lays out the slots of these shares, so that every candidate's connections are spread over the cycle as evenly as
/// can be: see [`super::order`] for the promise.
///
/// The length is the exact period (the sum of the shares in lowest terms) while that is at most [`MAX_SLOTS`]. Beyond,
/// it is the shortest of 256, 512, ... 4096 slots that leaves every share within a tenth of itself, rounded by
/// [`apportion`], and otherwise 4096. A positive share always keeps a slot while there are slots for all: a share of
/// one in a million gets one slot of 4096, 244 times too much, and the table's error says so (244,000 parts per
/// billion of all traffic). The promise then holds for the rounded shares.
///
/// A share of 0 has no slot. When every share is 0 the table is empty.
pub fn spread(shares: &[u64]) -> Table {
    let counts = slot_counts(shares);
    let (open, counts): (Vec<u32>, Vec<u32>) =
        (0..).zip(&counts).filter(|&(_, &count)| count > 0).map(|(i, &count)| (i, count as u32)).unzip();
    let slots = lay_out(&counts).into_iter().map(|slot| open[slot as usize]).collect();
    Table::new(slots, shares)
}

fn slot_counts(shares: &[u64]) -> Vec<u64> {
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    let all = total(shares.iter().copied());
    if all / u128::from(divisor) <= MAX_SLOTS as u128 {
        return shares.iter().map(|share| share / divisor).collect();
    }
    let serves = |counts: &[u64], length: u64| {
        shares.iter().zip(counts).all(|(&share, &count)| {
            let quota = u128::from(share) * u128::from(length);
            (u128::from(count) * all).abs_diff(quota) <= quota / RELATIVE_ERROR
        })
    };
    let fits = LENGTHS
        .iter()
        .map(|&length| (apportion(shares, length), length))
        .find(|(counts, length)| serves(counts, *length));
    fits.map_or_else(|| apportion(shares, MAX_SLOTS as u64), |(counts, _)| counts)
}
