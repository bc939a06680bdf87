//! The draws of `balance: scatter`: turns that nobody falls into step with.
//!
//! A table that is stepped through strictly gives every n-th connection the same slot, and a caller that opens its
//! connections in a fixed pattern (in pairs, a query and then its cancel, a pool of eight) falls into step with it: with two
//! backends, all first ones of the pairs go to one and all second ones to the other.
//!
//! With `spread` a service has a *sequence* for each protocol and family of addresses; with `scatter` a sequence has three
//! *lanes*. Each lane
//! steps through the whole table by itself; a hash of where they stand, as good as dice, says which of them a draw steps.
//! Consecutive draws of a sequence are consecutive draws of each lane: in any window, however long, a share is off by no
//! more than the lanes are together, which between two backends is less than one each.
//!
//! Other ways keep the bound and not the purpose. An order that is drawn anew in every period of the table lets the two
//! connections of a pair share a period of two, and never meet. With two lanes the pairs that begin at an even place leave
//! one thing as it is, whether the lanes are an even number of slots apart: if they are not, no pair meets either.

use crate::{
    pick::{mix, scale},
    tables::{Endpoint, UDP},
};

/// Sequences of a service.
pub const SEQUENCES: usize = 4;
/// Lanes of a sequence.
pub const LANES: u32 = 3;
/// A sequence is one word: each lane counts its draws in so many bits, the first one in the lowest. One in two million
/// draws overflows into the next lane, which skips a slot.
const BITS: u32 = 21;
const MASK: u64 = (1 << BITS) - 1;

/// Which of a service's sequences the connections of a frontend step.
#[inline(always)]
pub const fn sequence_of(frontend: &Endpoint) -> usize {
    (frontend.protocol == UDP) as usize * 2 + frontend.is_v4() as usize
}

/// The lane that the next draw steps, named by its lowest bit. `start` is another on every host and for every service.
#[inline(always)]
pub const fn lane(start: u64, sequence: usize, counts: u64) -> u32 {
    scale(mix(start.wrapping_add(sequence as u64) ^ counts), LANES) * BITS
}

/// The draw that steps a lane from here.
#[inline(always)]
pub const fn draw(start: u64, lane: u32, counts: u64) -> u64 {
    ((start >> lane) & MASK) + ((counts >> lane) & MASK)
}

/// What is added to the sequence for it.
#[inline(always)]
pub const fn step(lane: u32) -> u64 {
    1 << lane
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::tables::TCP;

    #[test]
    fn each_protocol_and_family_has_a_sequence() {
        let mut all = std::collections::BTreeSet::new();
        for address in ["10.96.0.10:443", "[fd00:96::10]:443"] {
            for protocol in [TCP, UDP] {
                all.insert(sequence_of(&Endpoint::new(address.parse().unwrap(), protocol)));
            }
        }
        assert!(all.into_iter().eq(0..SEQUENCES));
    }

    #[test]
    fn lanes_are_drawn_as_by_dice_and_differ_between_sequences() {
        let walk = |sequence| {
            let mut counts = 0_u64;
            let next = move |_| {
                let lane = lane(0x5eed, sequence, counts);
                counts += step(lane);
                lane / BITS
            };
            (0..9_000).map(next).collect::<Vec<u32>>()
        };
        let (one, other) = (walk(1), walk(3));
        for lane in 0..LANES {
            // Six standard deviations.
            assert!(one.iter().filter(|drawn| **drawn == lane).count().abs_diff(3000) < 270);
        }
        assert!(one.windows(2).filter(|two| two[0] == two[1]).count().abs_diff(3000) < 270);
        assert!(one.iter().zip(&other).filter(|(one, other)| one == other).count().abs_diff(3000) < 270);
    }

    #[test]
    fn each_lane_has_its_own_place() {
        let word = |counts: [u64; 3]| counts[0] | counts[1] << BITS | counts[2] << (2 * BITS);
        let (start, counts) = (word([5, 6, 7]), word([10, 20, MASK]));
        let drawn = [0, BITS, 2 * BITS].map(|lane| draw(start, lane, counts));
        assert_eq!(drawn, [15, 26, 7 + MASK]);
        assert_eq!(counts + step(BITS), word([10, 21, MASK]));
    }
}
