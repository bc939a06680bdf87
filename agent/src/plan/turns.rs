//! What callers see of a table that the programs step through with `scatter`: any window has its shares, and nobody who opens
//! connections in a pattern falls into step with the table.

use proptest::prelude::*;
use sluice_common::sequence;

use super::{order::WINDOW, spread::spread};

/// A pattern may favour a place by chance, as much as a coin does: so many standard deviations.
const DEVIATIONS: f64 = 6.0;

/// The backends of so many consecutive connections.
fn turns(shares: &[u64], start: u64, connections: usize) -> Vec<u32> {
    let slots = spread(shares).slots;
    let mut counts = 0;
    let next = |_| {
        let lane = sequence::lane(start, 1, counts);
        let draw = sequence::draw(start, lane, counts);
        counts += sequence::step(lane);
        slots[(draw % slots.len() as u64) as usize]
    };
    (0..connections).map(next).collect()
}

/// The most that any window of this length is off from a backend's share.
fn worst(turns: &[u32], shares: &[u64], window: usize) -> f64 {
    let all = shares.iter().sum::<u64>() as f64;
    let wanted: Vec<f64> = shares.iter().map(|share| *share as f64 / all * window as f64).collect();
    let mut held = vec![0.0; shares.len()];
    let mut worst = 0.0_f64;
    for (at, backend) in turns.iter().enumerate() {
        held[*backend as usize] += 1.0;
        if at >= window {
            held[turns[at - window] as usize] -= 1.0;
        }
        if at + 1 >= window {
            worst = wanted
                .iter()
                .zip(&held)
                .map(|(wanted, held): (&f64, &f64)| (wanted - held).abs())
                .fold(worst, f64::max);
        }
    }
    worst
}

/// How often the connection in this place of a pattern of so many goes to each backend, and how often the next one goes to
/// the same.
fn place(turns: &[u32], backends: usize, pattern: usize, place: usize) -> (Vec<f64>, f64) {
    let (mut held, mut together) = (vec![0.0; backends], 0.0);
    for at in (place..turns.len() - 1).step_by(pattern) {
        held[turns[at] as usize] += 1.0;
        together += f64::from(turns[at] == turns[at + 1]);
    }
    (held, together)
}

/// That a caller with a pattern of 2 to 8 connections sees the shares in every place of it. With few draws of a small share
/// each place has its share as from a coin; more even is better.
fn no_place_is_favoured(shares: &[u64], start: u64) -> Result<(), TestCaseError> {
    let all = shares.iter().sum::<u64>() as f64;
    let turns = turns(shares, start, 40_000);
    for pattern in 2..=8 {
        for at in 0..pattern {
            let (held, together) = place(&turns, shares.len(), pattern, at);
            let draws = held.iter().sum::<f64>();
            for (held, share) in held.iter().zip(shares) {
                let share = *share as f64 / all;
                let most = DEVIATIONS * (draws * share * (1.0 - share)).sqrt();
                prop_assert!(
                    (held - draws * share).abs() <= most,
                    "{held} of {draws} in place {at} of {pattern}, for {share}"
                );
            }
            // Of independent connections so many would go where the one before went.
            let fair: f64 = shares.iter().map(|share| (*share as f64 / all).powi(2)).sum();
            prop_assert!(together >= draws * fair * 0.3, "{together} of {draws} stay together, {fair} would be fair");
        }
    }
    Ok(())
}

#[test]
fn a_canary_of_5_percent_is_within_two_of_its_share() {
    for start in 0..20_u64 {
        let turns = turns(&[95, 5], start.wrapping_mul(0x9e37_79b9_7f4a_7c15), 20_000);
        for window in [20, 40, 100, 1000] {
            assert!(worst(&turns, &[95, 5], window) <= 2.0, "{window}");
        }
    }
}

#[test]
fn common_weights_favour_no_place() {
    for shares in [&[1, 1][..], &[95, 5], &[51, 49], &[1, 1, 1], &[3, 1], &[1; 8], &[19, 19, 19, 3], &[13, 5, 2]] {
        for start in [0, 0x9e37_79b9_7f4a_7c15, u64::MAX] {
            no_place_is_favoured(shares, start).unwrap_or_else(|error| panic!("{shares:?}: {error}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn between_two_a_share_is_less_than_three_off_in_any_window(
        shares in prop::array::uniform2(1..200_u64), start: u64, window in 1..300_usize,
    ) {
        prop_assert!(worst(&turns(&shares, start, 5_000), &shares, window) < 3.0);
    }

    #[test]
    fn among_many_a_share_is_little_more_off(
        shares in prop::collection::vec(1..100_u64, 3..20), start: u64,
    ) {
        prop_assert!(worst(&turns(&shares, start, 5_000), &shares, WINDOW) <= 4.5);
    }

    #[test]
    fn no_weights_favour_a_place(shares in prop::collection::vec(1..40_u64, 2..8), start: u64) {
        no_place_is_favoured(&shares, start)?;
    }
}
