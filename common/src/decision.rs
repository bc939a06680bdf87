//! The records of decisions that the programs send while somebody watches, and the filter that selects them.

use crate::tables::Endpoint;

/// Record of DECISIONS: one call, and what became of it.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionRecord {
    /// CLOCK_MONOTONIC ns.
    pub time: u64,
    /// Id of the cgroup (v2) of the process.
    pub cgroup: u64,
    pub pid: u32,
    /// A [`crate::verdict::Program`].
    pub program: u32,
    /// A [`crate::verdict::Verdict`].
    pub verdict: u32,
    /// [`NONE`]: the address is no frontend.
    pub service_id: u32,
    /// [`NONE`]: no backend was open.
    pub backend_id: u32,
    /// What the application asked for.
    pub frontend: Endpoint,
    /// Address of the backend. Its id may belong to another backend by the time it is looked up.
    pub backend: Endpoint,
    /// Name of the thread, ended by a zero.
    pub command: [u8; 16],
    /// Number of draws that fell on a slot whose backend was closed.
    pub skips: u32,
    /// The first `skips` of them say which; one may come twice.
    pub skipped: [SkippedRecord; SKIPPED],
}

/// A backend that a draw fell on and that was closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkippedRecord {
    pub backend_id: u32,
    /// Bits of [`crate::tables::BackendEntry::closed`]; [`NODE`] when its node is closed.
    pub why: u32,
}

/// Entry of DECISION_FILTER: which decisions are sent.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecisionFilter {
    /// CLOCK_MONOTONIC ns: no decision is sent from then on, unless the agent renews it.
    pub until: u64,
    /// Id of a cgroup: its processes, and those of the cgroups in it. With [`BY_CGROUP`].
    pub cgroup: u64,
    /// Which of the other fields count: [`WANTED`] and the flags after it.
    pub asked: u32,
    pub service_id: u32,
    pub pid: u32,
    pub frontend: Endpoint,
}

/// No service and no backend has this id.
pub const NONE: u32 = u32::MAX;
/// In [`SkippedRecord::why`]: the backend's node is closed.
pub const NODE: u32 = 1 << 31;
/// Places for what was skipped: the first draw and those that follow it.
pub const SKIPPED: usize = crate::pick::REDRAWS as usize + 1;

/// In [`DecisionFilter::asked`]: decisions are sent at all.
pub const WANTED: u32 = 1;
pub const BY_SERVICE: u32 = 2;
pub const BY_FRONTEND: u32 = 4;
pub const BY_PID: u32 = 8;
pub const BY_CGROUP: u32 = 16;
/// Calls to addresses that are no frontend are sent too.
pub const FOREIGN: u32 = 32;

/// ns for which a filter holds that is not renewed. An agent that was killed renews none.
pub const LEASE: u64 = 60_000_000_000;

/// Bytes of DECISIONS: room for nearly 3,000.
pub const DECISIONS_BYTES: u32 = 512 * 1024;

impl DecisionFilter {
    /// No decision is sent.
    pub const OFF: Self =
        Self { until: 0, cgroup: 0, asked: 0, service_id: NONE, pid: 0, frontend: Endpoint::v6([0; 4], 0, 0) };

    /// Every decision about a frontend is sent, once the agent says for how long.
    pub const ON: Self = Self { asked: WANTED, ..Self::OFF };

    /// Whether this flag is set.
    #[inline(always)]
    pub const fn asks(&self, what: u32) -> bool {
        self.asked & what != 0
    }

    /// The narrowest filter that passes all that either of the two passes.
    pub fn or(&self, other: &Self) -> Self {
        if !self.asks(WANTED) || !other.asks(WANTED) {
            return if self.asks(WANTED) { *self } else { *other };
        }
        let mut both = *self;
        both.asked = (self.asked & other.asked) | ((self.asked | other.asked) & FOREIGN);
        for (part, differs) in [
            (BY_SERVICE, self.service_id != other.service_id),
            (BY_FRONTEND, self.frontend != other.frontend),
            (BY_PID, self.pid != other.pid),
            (BY_CGROUP, self.cgroup != other.cgroup),
        ] {
            if differs {
                both.asked &= !part;
            }
        }
        both
    }
}

const _: () = {
    assert!(size_of::<SkippedRecord>() == 8);
    assert!(size_of::<DecisionRecord>() == 168);
    assert!(size_of::<DecisionFilter>() == 48);
    assert!(DECISIONS_BYTES.is_power_of_two());
};

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;

    #[test]
    fn two_filters_together_let_through_what_either_does() {
        let shop = DecisionFilter { asked: WANTED | BY_SERVICE, service_id: 1, ..DecisionFilter::OFF };
        let other = DecisionFilter { service_id: 2, ..shop };
        let one = DecisionFilter { asked: WANTED | BY_PID, pid: 7, ..DecisionFilter::OFF };
        let shop_of_one = DecisionFilter { asked: WANTED | BY_SERVICE | BY_PID, pid: 7, ..shop };
        let foreign = DecisionFilter { asked: WANTED | BY_PID | FOREIGN, ..one };
        for (a, b, asked) in [
            (shop, shop, WANTED | BY_SERVICE),
            (shop, other, WANTED),
            (shop, one, WANTED),
            (shop, shop_of_one, WANTED | BY_SERVICE),
            (one, shop_of_one, WANTED | BY_PID),
            (one, foreign, WANTED | BY_PID | FOREIGN),
            (shop, DecisionFilter::ON, WANTED),
            (DecisionFilter::OFF, shop, WANTED | BY_SERVICE),
            (shop, DecisionFilter::OFF, WANTED | BY_SERVICE),
        ] {
            assert_eq!(a.or(&b).asked, asked, "{a:?} and {b:?}");
            assert_eq!(b.or(&a).asked, asked, "{b:?} and {a:?}");
        }
        assert_eq!(shop.or(&shop_of_one).service_id, 1);
        assert_eq!(one.or(&shop_of_one).pid, 7);
    }
}
