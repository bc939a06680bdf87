//! Two levels of weight become one list of shares: a group's weight divides the traffic among groups, a backend's
//! effective weight divides its group's part. Integers throughout, so that 5 % is one in twenty and not nearly so.

use super::table::{apportion, gcd, total};

/// Where exact shares need more than 64 bits they are rounded to this many parts of the traffic.
const FIXED_POINT_UNITS: u64 = 1 << 62;

/// One backend as the division sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WeightedBackend {
    /// Position of its group in the list of group weights. A group that is not in the list has weight 0.
    pub group: usize,
    /// Weight times every factor (administrative state, health, warm-up), in any unit that all members of the group
    /// share. 0 takes no connection.
    pub weight: u64,
}

/// Who takes new connections. That nobody does is a result of its own, to be programmed like any other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Division {
    /// No group with a weight has a backend with a weight.
    Closed,
    Open(Shares),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shares {
    /// One share for each member, in lowest terms: a member gets `share / sum of shares` of new connections. Where exact
    /// shares would not fit 64 bits, each is within two parts in 2^62 of the traffic, and no weight that a document may
    /// carry becomes 0.
    pub shares: Vec<u64>,
    /// Groups that have a weight but no open member; the others take over their part in proportion to their weights.
    pub spilled: Vec<usize>,
}

/// Divides new connections among members: member `b` of group `g` gets
/// `weight(g) / sum of weights of groups that have an open member * weight(b) / sum of weights in g`.
///
/// A group of weight 0 takes nothing, even where every other group is empty: the answer is then [`Division::Closed`].
pub fn divide(groups: &[u64], members: &[WeightedBackend]) -> Division {
    let mut open = vec![Vec::new(); groups.len()];
    for (index, member) in members.iter().enumerate().filter(|(_, member)| member.weight > 0) {
        if let Some(group) = open.get_mut(member.group) {
            group.push(OpenBackend { index, weight: member.weight });
        }
    }
    let weighted = || groups.iter().zip(&open).enumerate().filter(|(_, (weight, _))| **weight > 0);
    let spilled = weighted().filter(|(_, (_, open))| open.is_empty()).map(|(group, _)| group).collect();
    let parts: Vec<Part> = weighted()
        .filter(|(_, (_, open))| !open.is_empty())
        .map(|(_, (&weight, open))| Part { weight, open })
        .collect();
    if parts.is_empty() {
        return Division::Closed;
    }
    let shares = exact(&parts, members.len()).unwrap_or_else(|| fixed_point(&parts, members.len()));
    Division::Open(Shares { shares, spilled })
}

/// A group that takes traffic, and who in it does.
struct Part<'a> {
    weight: u64,
    open: &'a [OpenBackend],
}

#[derive(Clone)]
struct OpenBackend {
    index: usize,
    weight: u64,
}

/// Brings `weight(g) / sum of weights in g` to one denominator for all groups; `None` when that outgrows its integers.
fn exact(parts: &[Part], members: usize) -> Option<Vec<u64>> {
    let mut common = 1_u128;
    let mut fractions = Vec::with_capacity(parts.len());
    for part in parts {
        let unit = part.open.iter().map(|member| member.weight).fold(0, gcd);
        let sum = total(part.open.iter().map(|member| member.weight / unit));
        let divisor = gcd(u128::from(part.weight), sum);
        let (numerator, denominator) = (u128::from(part.weight) / divisor, sum / divisor);
        common = (common / gcd(common, denominator)).checked_mul(denominator)?;
        fractions.push((numerator, denominator, unit));
    }
    let mut shares = vec![0_u128; members];
    for (part, (numerator, denominator, unit)) in parts.iter().zip(fractions) {
        let each = numerator.checked_mul(common / denominator)?;
        for member in part.open {
            shares[member.index] = each.checked_mul(u128::from(member.weight / unit))?;
        }
    }
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    shares.into_iter().map(|share| u64::try_from(share / divisor).ok()).collect()
}

/// Rounds by largest remainder, first among groups and then inside each.
fn fixed_point(parts: &[Part], members: usize) -> Vec<u64> {
    let mut shares = vec![0; members];
    let weights: Vec<u64> = parts.iter().map(|part| part.weight).collect();
    for (part, units) in parts.iter().zip(apportion(&weights, FIXED_POINT_UNITS)) {
        let weights: Vec<u64> = part.open.iter().map(|member| member.weight).collect();
        for (member, units) in part.open.iter().zip(apportion(&weights, units)) {
            shares[member.index] = units;
        }
    }
    let divisor = shares.iter().copied().fold(0, gcd).max(1);
    shares.into_iter().map(|share| share / divisor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(of: &[(usize, u64)]) -> Vec<WeightedBackend> {
        of.iter().map(|&(group, weight)| WeightedBackend { group, weight }).collect()
    }

    fn open(groups: &[u64], of: &[(usize, u64)]) -> Shares {
        match divide(groups, &members(of)) {
            Division::Open(shares) => shares,
            Division::Closed => panic!("closed"),
        }
    }

    #[test]
    fn weights_of_one_group_are_reduced_to_lowest_terms() {
        let shares = open(&[100], &[(0, 80), (0, 20), (0, 0)]);
        assert_eq!(shares, Shares { shares: vec![4, 1, 0], spilled: vec![] });
    }

    #[test]
    fn a_canary_keeps_its_part_whatever_the_number_of_backends() {
        assert_eq!(open(&[95, 5], &[(0, 100), (1, 100)]).shares, [19, 1]);
        assert_eq!(open(&[95, 5], &[(0, 100), (0, 100), (0, 50), (1, 7), (1, 7)]).shares, [76, 76, 38, 5, 5]);
    }

    #[test]
    fn warm_up_changes_the_shares_of_its_own_group_only() {
        assert_eq!(open(&[1, 1], &[(0, 1000), (0, 250), (1, 3)]).shares, [4, 1, 5]);
    }

    #[test]
    fn an_empty_group_spills_in_proportion() {
        let shares = open(&[60, 30, 10, 0], &[(0, 1), (1, 0), (2, 1), (3, 1)]);
        assert_eq!(shares, Shares { shares: vec![6, 0, 1, 0], spilled: vec![1] });
        assert_eq!(open(&[50, 50], &[(1, 1)]).spilled, [0]);
    }

    #[test]
    fn nobody_left_is_a_result_of_its_own() {
        assert_eq!(divide(&[], &[]), Division::Closed);
        assert_eq!(divide(&[100], &members(&[(0, 0), (0, 0)])), Division::Closed);
        assert_eq!(divide(&[0], &members(&[(0, 100)])), Division::Closed);
        assert_eq!(divide(&[100, 0], &members(&[(0, 0), (1, 100)])), Division::Closed);
        assert_eq!(divide(&[100], &members(&[(1, 100)])), Division::Closed);
    }

    #[test]
    fn shares_too_large_for_their_integers_are_rounded() {
        let primes = [999_983, 999_979, 999_961, 999_959, 999_953, 999_931, 999_917, 999_907];
        let of: Vec<(usize, u64)> =
            primes.iter().enumerate().flat_map(|(group, &prime)| [(group, 1), (group, prime - 1)]).collect();
        let shares = open(&[1_000_000; 8], &of);
        let total = total(shares.shares.iter().copied());
        assert!(total > u128::from(u64::MAX / 4), "the largest shares that there are");
        for (&share, &(group, weight)) in shares.shares.iter().zip(&of) {
            let wanted = weight as f64 / primes[group] as f64 / 8.0;
            assert!((share as f64 / total as f64 - wanted).abs() < 1e-15 && share > 0);
        }
    }

    proptest! {
        #[test]
        fn every_share_is_the_product_of_its_two_levels(
            groups in prop::collection::vec(0..1000_u64, 1..5),
            of in prop::collection::vec((0..5_usize, 0..2000_u64), 1..12),
        ) {
            let takes = |g: usize| of.iter().any(|&(group, weight)| group == g && weight > 0);
            let weight_of = |g: usize| groups.get(g).copied().filter(|_| takes(g)).unwrap_or(0);
            let all: u64 = (0..groups.len()).map(weight_of).sum();
            match divide(&groups, &members(&of)) {
                Division::Closed => prop_assert_eq!(all, 0),
                Division::Open(Shares { shares, spilled }) => {
                    let total = total(shares.iter().copied());
                    for (&share, &(group, weight)) in shares.iter().zip(&of) {
                        let inside: u64 = of.iter().filter(|other| other.0 == group).map(|other| other.1).sum();
                        let wanted = u128::from(weight_of(group)) * u128::from(weight);
                        let of_all = u128::from(all) * u128::from(inside);
                        let rounded = total > u128::from(u64::MAX / 4);
                        prop_assert!(rounded || u128::from(share) * of_all == wanted * total);
                    }
                    prop_assert_eq!(shares.iter().copied().fold(0, gcd), 1);
                    for (group, &weight) in groups.iter().enumerate() {
                        prop_assert_eq!(spilled.contains(&group), weight > 0 && !takes(group));
                    }
                }
            }
        }
    }
}
