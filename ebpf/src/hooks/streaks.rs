//! Failure streaks of backends, and the signals that tell the agent of them at once. While a backend has no streak, an
//! established connection reads its entry of STREAKS and writes nothing.

use core::ptr;

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use sluice_common::{
    records::ConnectionRecord,
    streak::{FailureStreak, Signal, SignalKind},
    tables::{ConnectionFailure, Counters},
};

use crate::{
    counters::{add, next_one},
    storage::{SIGNALS, SIGNALS_LOST, STREAKS},
};

/// What a backend has answered so far, established or refused: compared for equality only.
#[inline(always)]
pub fn answers(counters: *mut Counters) -> u32 {
    // SAFETY: a live map value, aligned words.
    unsafe {
        let established = ptr::read_volatile(&raw const (*counters).established);
        let refused =
            ptr::read_volatile((&raw const (*counters).failed).cast::<u64>().add(ConnectionFailure::Refused as usize));
        established.wrapping_add(refused) as u32
    }
}

/// Ends the streak of failures: a connection was established.
#[inline(always)]
pub fn established(backend_id: u32) {
    if let Some(streak) = STREAKS.get_ptr_mut(backend_id) {
        // SAFETY: a live map value, an aligned word.
        unsafe {
            if ptr::read_volatile(&raw const (*streak).failures) != 0 {
                ptr::write_volatile(&raw mut (*streak).failures, 0);
            }
        }
        answered(streak);
    }
}

/// Adds a connection that was not established to the streak.
#[inline(always)]
pub fn failed(connection: &ConnectionRecord, reason: ConnectionFailure) {
    let backend_id = connection.backend_id;
    let Some(streak) = STREAKS.get_ptr_mut(backend_id) else {
        return;
    };
    match reason {
        ConnectionFailure::Refused => answered(streak),
        ConnectionFailure::TimedOut | ConnectionFailure::Unreachable => {}
        // An abandoned attempt reflects the caller; its retransmitted SYNs were already counted.
        ConnectionFailure::Abandoned => return,
    }
    if is_old(connection, streak) {
        return;
    }
    // SAFETY: a live map value, aligned words; the sum counts for this CPU alone.
    let (failures, limit) = unsafe { (next_one(&raw mut (*streak).failures) + 1, (*streak).failures_limit) };
    // SAFETY: helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a live map value.
    if unsafe { (*streak).is_due(failures, limit, now) } {
        signal(backend_id, streak, SignalKind::Failures, now);
    }
}

/// Counts a SYN that had to be sent again.
#[inline(always)]
pub fn unanswered(connection: &ConnectionRecord, counters: *mut Counters) {
    let Some(streak) = STREAKS.get_ptr_mut(connection.backend_id) else {
        return;
    };
    // SAFETY: helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a live map value, an aligned word.
    add(unsafe { &raw mut (*streak).unanswered }, 1);
    if is_old(connection, streak) {
        return;
    }
    let is_silent = connection.seen == answers(counters);
    let from = if is_silent { connection.since } else { now };
    // SAFETY: a live map value, aligned words.
    unsafe {
        let failures = next_one(&raw mut (*streak).failures) + 1;
        let since = ptr::read_volatile(&raw const (*streak).unanswered_since);
        if since == 0 || from < since {
            ptr::write_volatile(&raw mut (*streak).unanswered_since, from);
        }
        // Signal on each retransmitted SYN, as often as `is_due` allows, and when the streak reaches its limit.
        let limit = (*streak).failures_limit;
        if (*streak).is_due(failures, limit, now) || (*streak).is_due(failures, 1, now) {
            signal(connection.backend_id, streak, SignalKind::Unanswered, now);
        }
    }
}

/// Counts the end of an established connection; `is_early`: the backend reset it before its first byte.
#[inline(always)]
pub fn closed(backend_id: u32, is_early: bool) {
    let Some(streak) = STREAKS.get_ptr_mut(backend_id) else {
        return;
    };
    // SAFETY: a live map value, aligned words.
    unsafe {
        if !is_early {
            if ptr::read_volatile(&raw const (*streak).early_resets) != 0 {
                ptr::write_volatile(&raw mut (*streak).early_resets, 0);
            }
            return;
        }
        add(&raw mut (*streak).early_resets_total, 1);
        let (resets, limit) = (next_one(&raw mut (*streak).early_resets) + 1, (*streak).resets_limit);
        let now = bpf_ktime_get_ns();
        if (*streak).is_due(resets, limit, now) {
            signal(backend_id, streak, SignalKind::EarlyResets, now);
        }
    }
}

/// Whether the connection was picked before the streaks were restarted: its fate says nothing of the backend as it is now.
#[inline(always)]
fn is_old(connection: &ConnectionRecord, streak: *mut FailureStreak) -> bool {
    // SAFETY: the callers pass a live map value; an aligned word.
    connection.since < unsafe { ptr::read_volatile(&raw const (*streak).restarted) }
}

#[inline(always)]
fn answered(streak: *mut FailureStreak) {
    // SAFETY: the callers pass a live map value; an aligned word.
    unsafe {
        if ptr::read_volatile(&raw const (*streak).unanswered_since) != 0 {
            ptr::write_volatile(&raw mut (*streak).unanswered_since, 0);
        }
    }
}

#[inline(always)]
fn signal(backend_id: u32, streak: *mut FailureStreak, kind: SignalKind, now: u64) {
    // SAFETY: the callers pass a live map value; aligned words.
    let record = unsafe {
        ptr::write_volatile(&raw mut (*streak).signalled, now);
        Signal {
            backend_id,
            kind: kind as u32,
            failures: ptr::read_volatile(&raw const (*streak).failures),
            early_resets: ptr::read_volatile(&raw const (*streak).early_resets),
            unanswered_since: ptr::read_volatile(&raw const (*streak).unanswered_since),
            time: now,
        }
    };
    if SIGNALS.output::<Signal>(&record, 0).is_err()
        && let Some(lost) = SIGNALS_LOST.get_ptr_mut(0)
    {
        add(lost, 1);
    }
}
