//! The proof of a zero: what the kernel counted after it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::tables::Counters;
use utoipa::ToSchema;

use crate::{
    handle::ZeroProof,
    model::{Target, Zero},
};

/// An operator's zero, and what happened since.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ZeroStatus {
    /// What was zeroed: `node/NAME` or `SERVICE/BACKEND`.
    pub zeroed: String,
    /// When the kernel had the zero.
    pub zeroed_at: Timestamp,
    /// From the reading of the request to the kernel's acknowledgement; 0 when a former agent's zero was found.
    pub programmed_in_microseconds: u64,
    /// Connections and datagram flows that the kernel counted after the zero.
    pub new_connections_since_zero: u64,
    pub owner: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// What the counters of one or more backends say about new connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Picks {
    pub picked: u64,
    /// CLOCK_MONOTONIC ns of the last one; 0: none yet.
    pub last: u64,
}

impl<'a> FromIterator<&'a Counters> for Picks {
    fn from_iter<I: IntoIterator<Item = &'a Counters>>(counters: I) -> Self {
        counters.into_iter().fold(Self::default(), |sum, counters| Self {
            picked: sum.picked + counters.picked,
            last: sum.last.max(counters.last_pick),
        })
    }
}

impl Picks {
    /// New connections since a zero.
    ///
    /// A pick notes its time before it looks at the state. One that the zero did not stop therefore carries a time
    /// before the zero, and may be counted a moment after: when the last time is before the zero, nothing was let
    /// through, whatever the counter says.
    pub fn since(self, proof: &ZeroProof) -> u64 {
        if self.last < proof.monotonic_ns { 0 } else { self.picked.saturating_sub(proof.picked_before) }
    }
}

impl ZeroStatus {
    /// `proof` is missing for a moment only, between a zero of a former agent and its adoption by this one.
    pub fn new(target: &Target, zero: &Zero, proof: Option<&ZeroProof>, picks: Picks) -> Self {
        Self {
            zeroed: target.to_string(),
            zeroed_at: proof.map_or(zero.since, |proof| proof.at),
            programmed_in_microseconds: proof.map_or(0, |proof| micros(proof.programmed_in)),
            new_connections_since_zero: proof.map_or(0, |proof| picks.since(proof)),
            owner: zero.owner.clone(),
            reason: zero.reason.clone(),
            expires_at: zero.expires,
        }
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: u64 = 5_000;

    fn proof() -> ZeroProof {
        ZeroProof {
            at: Timestamp::UNIX_EPOCH,
            monotonic_ns: ZERO,
            picked_before: 100,
            programmed_in: Default::default(),
        }
    }

    #[test]
    fn only_picks_that_began_after_the_zero_count() {
        for (what, picks, expected) in [
            ("untouched since", Picks { picked: 100, last: ZERO - 1 }, 0),
            ("began before and was counted after", Picks { picked: 101, last: ZERO - 1 }, 0),
            ("let through", Picks { picked: 103, last: ZERO }, 3),
            ("never used", Picks::default(), 0),
            ("a backend left the node", Picks { picked: 40, last: ZERO + 1 }, 0),
        ] {
            assert_eq!(picks.since(&proof()), expected, "{what}");
        }
    }
}
