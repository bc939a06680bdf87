//! Tells watchers what became of a call: by a record in a ring buffer when it fits their filter, and by log messages
//! when the agent wants them.
//!
//! Instructions are not saved here. A call is told after it was decided, so that nothing here can change where it goes.
//! Without an agent no decision is sent once the filter's lease is over. Log messages have no lease: each of them would
//! have to look at it, and they are in place only where the agent logs them.

use core::ptr;

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid,
    bpf_ktime_get_coarse_ns, bpf_ktime_get_ns,
};
use aya_log_ebpf::debug;
use sluice_common::{
    decision::{
        BY_CGROUP, BY_FRONTEND, BY_PID, BY_SERVICE, DecisionFilter, DecisionRecord, FOREIGN, NODE, NONE, SKIPPED,
        SkippedRecord, WANTED,
    },
    pick::{Tables, mix, scale},
    tables::{Endpoint, TableWord},
    verdict::{Program, Verdict},
};

use crate::{
    counters::add,
    lookup::{KernelTables, Observer},
    storage::{BACKENDS, DECISION_FILTER, DECISIONS, DECISIONS_LOST},
};

/// The steps of one decision.
pub struct Recorder {
    frontend: Endpoint,
    service_id: u32,
    backend_id: u32,
    table: TableWord,
    draw: u64,
}

impl Observer for Recorder {
    #[inline(always)]
    fn finds(&mut self, service_id: u32) {
        self.service_id = service_id;
        debug!((), "the address is a frontend of service {}", service_id);
    }

    #[inline(always)]
    fn draws(&mut self, table: TableWord, draw: u64) {
        (self.table, self.draw) = (table, draw);
        debug!((), "draw {} of {} slots from {} on", draw, table.length(), table.base());
    }

    #[inline(always)]
    fn takes(&mut self, backend_id: u32) {
        self.backend_id = backend_id;
        debug!((), "the choice is backend {}", backend_id);
    }
}

impl Recorder {
    /// Takes the destination before the decision, which may replace it.
    #[inline(always)]
    pub fn new(frontend: Endpoint) -> Self {
        Self { frontend, service_id: NONE, backend_id: NONE, table: TableWord(0), draw: 0 }
    }

    /// Sends the finished decision.
    #[inline(always)]
    pub fn tell(&self, program: Program, verdict: Verdict) {
        debug!((), "program {} ends with verdict {}", program as u32, verdict as u32);
        // SAFETY: helper without arguments.
        let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
        if !DECISION_FILTER.get(0).is_some_and(|filter| self.is_wanted(filter, pid)) {
            return;
        }
        let Some(mut entry) = DECISIONS.reserve::<DecisionRecord>(0) else {
            if let Some(lost) = DECISIONS_LOST.get_ptr_mut(0) {
                add(lost, 1);
            }
            return;
        };
        let decision = entry.as_mut_ptr();
        // SAFETY: a record of this call alone, every field of which is written; the helpers write no more than they are told.
        unsafe {
            (*decision).time = bpf_ktime_get_ns();
            (*decision).cgroup = bpf_get_current_cgroup_id();
            (*decision).pid = pid;
            (*decision).program = program as u32;
            (*decision).verdict = verdict as u32;
            (*decision).service_id = self.service_id;
            (*decision).backend_id = self.backend_id;
            (*decision).frontend = self.frontend;
            (*decision).backend = self.backend();
            let command = &raw mut (*decision).command;
            bpf_get_current_comm(command.cast(), size_of::<[u8; 16]>() as u32);
            (*decision).skips = self.skipped((&raw mut (*decision).skipped).cast());
        }
        entry.submit(0);
    }

    #[inline(always)]
    fn is_wanted(&self, filter: &DecisionFilter, pid: u32) -> bool {
        filter.asks(WANTED)
            // SAFETY: helper without arguments.
            && filter.until > unsafe { bpf_ktime_get_coarse_ns() }
            && (self.service_id != NONE || filter.asks(FOREIGN))
            && (!filter.asks(BY_SERVICE) || filter.service_id == self.service_id)
            && (!filter.asks(BY_PID) || filter.pid == pid)
            && (!filter.asks(BY_FRONTEND) || self.is_for(&filter.frontend))
            && (!filter.asks(BY_CGROUP) || is_in(filter.cgroup))
    }

    /// Word by word: the compiler would call a function for all of it.
    #[inline(always)]
    fn is_for(&self, frontend: &Endpoint) -> bool {
        let (ours, theirs) = (&self.frontend, frontend);
        ours.port == theirs.port
            && ours.protocol == theirs.protocol
            && ours.address[3] == theirs.address[3]
            && ours.address[2] == theirs.address[2]
            && ours.address[1] == theirs.address[1]
            && ours.address[0] == theirs.address[0]
    }

    #[inline(always)]
    fn backend(&self) -> Endpoint {
        let nowhere = Endpoint::v6([0; 4], 0, 0);
        BACKENDS
            .get(self.backend_id)
            .map_or(nowhere, |backend| Endpoint::v6(backend.address, backend.port, self.frontend.protocol))
    }

    /// Repeats the draws of [`sluice_common::pick`] up to the one that found an open backend, and writes down whom the
    /// others fell on; returns how many. The list that follows the draws is not repeated: by then nine have been named.
    #[inline(always)]
    fn skipped(&self, places: *mut SkippedRecord) -> u32 {
        let length = self.table.length();
        if length == 0 {
            return 0;
        }
        let (mut at, mut again) = ((self.draw % u64::from(length)) as u32, self.draw);
        for skips in 0..SKIPPED {
            let Some(id) = KernelTables.slot(self.table.base() + at) else {
                return skips as u32;
            };
            let why = why_closed(id);
            if why == 0 || id == self.backend_id {
                return skips as u32;
            }
            // SAFETY: one of as many places as there are rounds.
            unsafe { ptr::write(places.add(skips), SkippedRecord { backend_id: id, why }) };
            again = mix(again.wrapping_add(1));
            at = scale(again, length);
        }
        SKIPPED as u32
    }
}

/// Whether the process is in this cgroup, or in one that is in it.
#[inline(always)]
fn is_in(cgroup: u64) -> bool {
    /// A cgroup deeper than this is seen as none of those below it.
    const DEPTH: i32 = 32;
    for level in 0..DEPTH {
        // SAFETY: a helper without pointers; 0 is below the process's own.
        match unsafe { bpf_get_current_ancestor_cgroup_id(level) } {
            0 => return false,
            id if id == cgroup => return true,
            _ => {}
        }
    }
    false
}

/// 0: the backend is open.
#[inline(always)]
fn why_closed(id: u32) -> u32 {
    let Some(backend) = BACKENDS.get(id) else {
        return 0;
    };
    let node = if KernelTables.node_closed(backend.node) == 0 { 0 } else { NODE };
    backend.closed | node
}
