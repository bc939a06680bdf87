//! connect(): the choice of a backend, and the record of it.

use core::ptr;

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use sluice_common::{
    opening::HAS_FLOWS,
    records::{ConnectionRecord, Phase},
    tables::{Endpoint, UDP},
    verdict::Verdict,
};

use super::{
    Answer, answer,
    call::{Call, Family},
    sockops,
};
use crate::{
    counters::{add, counters},
    lookup::{Choice, Observer, choose, service_of},
    storage::{connection, connection_or, forget},
};

#[inline(always)]
pub fn connect<F: Family>(call: &Call<F>, observer: &mut impl Observer) -> Verdict {
    let frontend = call.destination();
    let (service_id, choice) = match decide(call, observer, &frontend) {
        Ok(decided) => decided,
        Err(verdict) => {
            // A call that is refused leaves the socket as it was.
            if answer(verdict) == Answer::Proceed {
                forget_former_use(call, &frontend);
            }
            return verdict;
        }
    };
    call.redirect(&choice.backend.address, choice.backend.port);
    if record(call, &frontend, service_id, &choice) { Verdict::Steered } else { Verdict::SteeredUntracked }
}

#[inline(always)]
fn decide<F: Family>(
    call: &Call<F>,
    observer: &mut impl Observer,
    frontend: &Endpoint,
) -> Result<(u32, Choice), Verdict> {
    let service_id = service_of(frontend).ok_or(Verdict::NotOurs)?;
    observer.finds(service_id);
    if call.is_marked() {
        return Err(Verdict::Marked);
    }
    Ok((service_id, choose(call, observer, frontend, service_id)?))
}

/// Stores the record of a steered socket. `false`: memory is short, the connection goes on untracked.
#[inline(always)]
fn record<F: Family>(call: &Call<F>, frontend: &Endpoint, service_id: u32, choice: &Choice) -> bool {
    // SAFETY: helper without arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let mut record = ConnectionRecord::picked(frontend, choice.backend, service_id, choice.id, pid, choice.time);
    let stored = connection_or(call.socket(), &mut record);
    if stored.is_null() {
        return false;
    }
    // SAFETY: storage of a socket that this call holds.
    unsafe {
        let is_mine = (*stored).phase == Phase::New as u8 && (*stored).backend_id == choice.id;
        if !(is_mine && (*stored).since == choice.time) {
            // The socket was used before, or by another thread in this moment.
            sockops::settle(call.program(), stored);
            record.notes = (*stored).notes & HAS_FLOWS;
            *stored = record;
        }
        (*stored).phase = Phase::Picked as u8;
        if frontend.protocol == UDP {
            (*stored).phase = Phase::Opened as u8;
            // choice.time may be a cached earlier reading; UDP gets no later timestamp.
            (*stored).since = bpf_ktime_get_ns();
            if let Some(counters) = counters(choice.id) {
                add(&raw mut (*counters).opened, 1);
            }
        }
    }
    true
}

/// Removes the record of a socket that was steered before and now connects elsewhere. A TCP socket without a source port
/// is taken for a fresh one, as nearly all are.
#[inline(always)]
fn forget_former_use<F: Family>(call: &Call<F>, to: &Endpoint) {
    let socket = call.socket();
    // SAFETY: the socket of a call is never null.
    if to.protocol != UDP && unsafe { ptr::read_volatile(&raw const (*socket).src_port) } == 0 {
        return;
    }
    let stored = connection(socket);
    if !stored.is_null() {
        sockops::settle(call.program(), stored);
        // SAFETY: storage of a socket that this call holds.
        if unsafe { (*stored).notes } & HAS_FLOWS == 0 {
            forget(socket);
        }
    }
}
