//! The proof of a zero: what the kernel counted after it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sluice_common::tables::Counters;
use utoipa::ToSchema;

use crate::{
    control::attachment::Missing,
    model::{BackendId, Target, Zero},
    view::published::ZeroProof,
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
    /// What the count does not prove, and why; absent while it stands for every connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unproven: Option<String>,
    pub owner: String,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Id of the operation that empties it, or has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<String>,
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

/// New connections since a zero, of the backends that are counted here.
///
/// A pick reads its start time before it checks the state, and stores that time when it is counted. If the last start
/// precedes the zero, nothing was let through, even if the counter rose later.
pub fn since<'a>(proof: &ZeroProof, counted: impl IntoIterator<Item = (BackendId, &'a Counters)>) -> u64 {
    let one = |(id, counters): (BackendId, &Counters)| match proof.before.get(&id) {
        Some(before) if counters.last_pick >= before.since => counters.picked.saturating_sub(before.picked),
        Some(_) | None => 0,
    };
    counted.into_iter().map(one).sum()
}

impl ZeroStatus {
    /// `proof` is missing for a moment only, between a zero of a former agent and its adoption by this one.
    pub fn new<'a>(
        target: &Target,
        zero: &Zero,
        proof: Option<&ZeroProof>,
        missing: &Missing,
        counted: impl IntoIterator<Item = (BackendId, &'a Counters)>,
    ) -> Self {
        Self {
            zeroed: target.to_string(),
            zeroed_at: proof.map_or(zero.since, |proof| proof.at),
            programmed_in_microseconds: proof.map_or(0, |proof| micros(proof.programmed_in)),
            new_connections_since_zero: proof.map_or(0, |proof| since(proof, counted)),
            unproven: unproven(proof, missing),
            owner: zero.owner.clone(),
            reason: zero.reason.clone(),
            expires_at: zero.expires,
            drain: zero.drain.as_ref().map(|drain| drain.operation.clone()),
        }
    }
}

fn unproven(proof: Option<&ZeroProof>, missing: &Missing) -> Option<String> {
    let before = proof.and_then(|proof| proof.unattached).map(|unattached| unattached.to_string());
    let parts: Vec<_> = missing.unattached().into_iter().chain(before).collect();
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kernel::gauges::UNUSED, view::published::Before};

    const ZERO: u64 = 5_000;

    #[test]
    fn only_picks_that_began_after_the_zero_count() {
        let before =
            [(BackendId(1), Before { picked: 100, since: ZERO }), (BackendId(2), Before { picked: 7, since: 9_000 })];
        let proof = ZeroProof {
            at: Timestamp::UNIX_EPOCH,
            monotonic_ns: ZERO,
            before: before.into(),
            programmed_in: Default::default(),
            unattached: None,
        };
        for (what, counted, expected) in [
            ("untouched since", &[(1, 100, ZERO - 1)][..], 0),
            ("began before and was counted after", &[(1, 101, ZERO - 1)], 0),
            ("let through", &[(1, 103, ZERO)], 3),
            ("never used", &[(1, 0, 0)], 0),
            ("another one came later, with a past", &[(1, 100, ZERO - 1), (2, 7, 8_000)], 0),
            ("and was let through itself", &[(1, 100, ZERO - 1), (2, 9, 9_001)], 2),
            ("one that left hides nothing", &[(2, 9, 9_001)], 2),
            ("no backend of the target", &[(3, 50, 10_000)], 0),
        ] {
            let counters: Vec<_> = counted
                .iter()
                .map(|(id, picked, last_pick)| {
                    (BackendId(*id), Counters { picked: *picked, last_pick: *last_pick, ..UNUSED })
                })
                .collect();
            assert_eq!(since(&proof, counters.iter().map(|(id, counters)| (*id, counters))), expected, "{what}");
        }
    }
}
