//! Datagram flows: an unconnected socket and the frontend it sends to, and how long a flow stays with its backend.
//!
//! The programs run [`goes_on`] for each datagram, and the agent for each flow that it counts: what is counted as staying
//! is what stays.

use crate::tables::{BackendEntry, CLOSED_WEIGHT, CLOSED_ZERO};

/// Key of FLOWS. Seen from the frontend it finds the backend that a flow stays with; seen from the backend it finds the
/// frontend to name as the source of an answer.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// Socket cookie.
    pub socket: u64,
    pub address: [u32; 4],
    pub port: u16,
    /// 0 from the frontend, 1 from the backend.
    pub answer: u16,
    pub padding: u32,
}

/// Value of FLOWS: the other end.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub address: [u32; 4],
    pub port: u16,
    pub padding: u16,
    pub service_id: u32,
    pub backend_id: u32,
    /// Seen from the backend: 1 once an answer has come. 0 in what an agent has left that did not note it.
    pub answered: u32,
    /// CLOCK_MONOTONIC ns. Seen from the frontend: of the last datagram sent. Seen from the backend: of the last answer.
    pub last: u64,
}

/// A flow that sent nothing for this long is picked anew, in ns, unless it was answered. The figure is conntrack's for
/// unreplied UDP.
pub const FLOW_IDLE: u64 = 30_000_000_000;
/// One that was answered is picked anew when it neither sent nor received for this long, in ns, unless its service says
/// another time. The figure is conntrack's for UDP streams.
pub const ANSWERED_FLOW_IDLE: u64 = 120_000_000_000;

const _: () = {
    assert!(size_of::<FlowKey>() == 32);
    assert!(size_of::<Flow>() == 40);
};

impl FlowKey {
    #[inline(always)]
    pub const fn from_frontend(socket: u64, address: &[u32; 4], port: u16) -> Self {
        Self { socket, address: *address, port, answer: 0, padding: 0 }
    }

    #[inline(always)]
    pub const fn from_backend(socket: u64, address: &[u32; 4], port: u16) -> Self {
        Self { socket, address: *address, port, answer: 1, padding: 0 }
    }
}

impl Flow {
    /// Whether the other end is at this address.
    #[inline(always)]
    pub fn is_to(&self, address: &[u32; 4], port: u16) -> bool {
        self.port == port
            && self.address[3] == address[3]
            && self.address[2] == address[2]
            && self.address[1] == address[1]
            && self.address[0] == address[0]
    }
}

/// Whether a flow, seen from its frontend, stays with its backend at `now` (CLOCK_MONOTONIC ns).
///
/// `answers`: the same, seen from the backend. `closed`: why the backend or its node takes nothing new, 0 when they do.
/// With an open backend a flow stays while it is used. With one that is zeroed or has no weight it stays if its service
/// keeps flows, and while answers come: what is sent keeps it no longer, for a server that is dead would keep its callers.
#[inline(always)]
pub fn goes_on(flow: &Flow, answers: Option<&Flow>, backend: &BackendEntry, closed: u32, now: u64) -> bool {
    let patience = if backend.flow_timeout == 0 { ANSWERED_FLOW_IDLE } else { backend.flow_timeout as u64 * 1_000_000 };
    // An id may be another backend's by now.
    if !flow.is_to(&backend.address, backend.port) {
        return false;
    }
    let sent = now.saturating_sub(flow.last);
    let answered = match answers {
        Some(answers) if answers.answered != 0 => now.saturating_sub(answers.last) < patience,
        _ => return closed == 0 && sent < if patience < FLOW_IDLE { patience } else { FLOW_IDLE },
    };
    if closed == 0 {
        return answered || sent < patience;
    }
    answered && backend.keeps_flows != 0 && closed & !(CLOSED_ZERO | CLOSED_WEIGHT) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{CLOSED_EJECTED, CLOSED_FLOWS, CLOSED_REMOVED, CLOSED_UNREADY};

    const SECOND: u64 = 1_000_000_000;
    const NOW: u64 = 10_000 * SECOND;
    const ADDRESS: [u32; 4] = [0, 0, 0xffff, 7];

    fn flow(seconds: u64, answered: u32) -> Flow {
        let last = NOW - seconds * SECOND;
        Flow { address: ADDRESS, port: 53, padding: 0, service_id: 1, backend_id: 1, answered, last }
    }

    fn backend(keeps_flows: u16, seconds: u32) -> BackendEntry {
        BackendEntry { address: ADDRESS, port: 53, keeps_flows, node: 0, closed: 0, flow_timeout: seconds * 1000 }
    }

    #[test]
    fn with_an_open_backend_a_flow_stays_while_it_is_used() {
        for (timeout, sent, answered, stays) in [
            (0, 29, None, true),
            (0, 30, None, false),
            (0, 119, Some(500), true),
            (0, 120, Some(500), false),
            (0, 500, Some(119), true),
            (0, 500, Some(120), false),
            (5, 4, None, true),
            (5, 5, None, false),
            (5, 6, Some(6), false),
            (600, 30, None, false),
            (600, 599, Some(700), true),
            (600, 700, Some(599), true),
            (600, 600, Some(600), false),
        ] {
            let answers = answered.map(|seconds| flow(seconds, 1));
            let found = goes_on(&flow(sent, 0), answers.as_ref(), &backend(0, timeout), 0, NOW);
            assert_eq!(found, stays, "{timeout} s: sent {sent} s ago, answered {answered:?} s ago");
        }
        assert!(!goes_on(&flow(1, 0), Some(&flow(1, 0)), &BackendEntry { port: 54, ..backend(1, 0) }, 0, NOW));
    }

    #[test]
    fn with_a_closed_backend_it_stays_while_answers_come_if_the_service_keeps_flows() {
        for (keeps, closed, answered, stays) in [
            (1, CLOSED_ZERO, Some(119), true),
            (1, CLOSED_WEIGHT, Some(119), true),
            (1, CLOSED_ZERO | CLOSED_WEIGHT, Some(1), true),
            (1, CLOSED_ZERO, Some(120), false),
            (1, CLOSED_ZERO, None, false),
            (0, CLOSED_ZERO, Some(1), false),
            (1, CLOSED_ZERO | CLOSED_FLOWS, Some(1), false),
            (1, CLOSED_ZERO | CLOSED_UNREADY, Some(1), false),
            (1, CLOSED_EJECTED, Some(1), false),
            (1, CLOSED_ZERO | CLOSED_REMOVED, Some(1), false),
        ] {
            let answers = answered.map(|seconds| flow(seconds, 1));
            // What it sends in vain says nothing.
            let found = goes_on(&flow(0, 0), answers.as_ref(), &backend(keeps, 0), closed, NOW);
            assert_eq!(found, stays, "keeps: {keeps}, closed: {closed}, answered {answered:?} s ago");
        }
        assert!(!goes_on(&flow(0, 0), Some(&flow(0, 0)), &backend(1, 0), CLOSED_ZERO, NOW), "never answered");
    }
}
