//! connect(): the choice of a backend, and the record of it.

use core::ptr;

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_ktime_get_ns,
};
use sluice_common::{
    pick::{Client, pick},
    records::{Connection, Phase},
    tables::{Backend, Balance, Endpoint, MAPPED, Service, Table, UDP},
    verdict::Verdict,
};

use crate::{
    address::{Call, Family, REFUSED},
    maps::{
        Kernel, SERVICES, add, bypass_mark, connection, connection_or, counters, forget, next, service_of, time_of_pick,
    },
    track,
};

#[inline(always)]
pub fn connect<F: Family>(call: &Call<F>) -> i32 {
    let frontend = call.destination();
    let Some(service_id) = service_of(&frontend) else {
        forget_former_use(call, &frontend);
        return call.proceed(Verdict::NotOurs);
    };
    if is_marked(call) {
        forget_former_use(call, &frontend);
        return call.proceed(Verdict::Marked);
    }
    let choice = match choose(call, service_id) {
        Ok(choice) => choice,
        Err(REFUSED) => return REFUSED,
        Err(way_out) => {
            forget_former_use(call, &frontend);
            return way_out;
        }
    };
    call.redirect(&choice.backend.address, choice.backend.port);
    call.proceed(if record(call, &frontend, service_id, &choice) {
        Verdict::Steered
    } else {
        Verdict::SteeredUntracked
    })
}

/// A backend, chosen for a call and counted.
pub struct Choice<'a> {
    pub id: u32,
    pub backend: &'a Backend,
    /// Read before the backend was seen to be open.
    pub time: u64,
}

#[inline(always)]
pub fn is_marked<F: Family>(call: &Call<F>) -> bool {
    let mark = bypass_mark();
    // SAFETY: every socket call has its socket.
    mark != 0 && unsafe { (*call.socket()).mark } == mark
}

/// Chooses a backend that this call's family reaches, and counts the choice; `Err` is the way out without one.
#[inline(always)]
pub fn choose<F: Family>(call: &Call<F>, service_id: u32) -> Result<Choice<'static>, i32> {
    let Some(service) = SERVICES.get_ptr_mut(service_id) else {
        return Err(call.proceed(Verdict::Broken));
    };
    // Before the state is read: see `Counters::last_pick`.
    let time = time_of_pick(service);
    // SAFETY: a live map value; one aligned 64-bit load, so that the word is the old or the new one.
    let table = Table(unsafe { ptr::read_volatile(&raw const (*service).table) });
    if !table.present() {
        return Err(call.proceed(Verdict::Broken));
    }
    let Some((id, backend)) = pick(&Kernel, table, draw(call, service, table)) else {
        // SAFETY: as above.
        add(unsafe { &raw mut (*service).no_backend }, 1);
        return Err(if table.pass() { call.proceed(Verdict::Passed) } else { call.refuse() });
    };
    if !F::reaches(&backend.address) {
        return Err(call.proceed(Verdict::Broken));
    }
    if let Some(counters) = counters(id) {
        // SAFETY: as above; `last_pick` is one aligned store, and the last writer wins.
        unsafe {
            add(&raw mut (*counters).picked, 1);
            ptr::write_volatile(&raw mut (*counters).last_pick, time);
        }
    }
    Ok(Choice { id, backend, time })
}

#[inline(always)]
fn draw<F: Family>(call: &Call<F>, service: *mut Service, table: Table) -> u64 {
    if table.balance() == Balance::Spread as u32 {
        // SAFETY: a live map value.
        next(unsafe { &raw mut (*service).sequence })
    } else if table.balance() == Balance::Random as u32 {
        // SAFETY: helper without arguments.
        u64::from(unsafe { bpf_get_prandom_u32() })
    } else {
        client(call).draw()
    }
}

/// Who is calling.
#[inline(always)]
fn client<F: Family>(call: &Call<F>) -> Client {
    let socket = call.socket();
    // SAFETY: helpers on the context; the socket of a call is never null.
    unsafe {
        let v4 = ptr::read_volatile(&raw const (*socket).src_ip4);
        let source = if ptr::read_volatile(&raw const (*socket).family) == 2 {
            if v4 == 0 { [0; 4] } else { [0, 0, MAPPED, v4] }
        } else {
            let words = &raw const (*socket).src_ip6;
            [
                ptr::read_volatile(&raw const (*words)[0]),
                ptr::read_volatile(&raw const (*words)[1]),
                ptr::read_volatile(&raw const (*words)[2]),
                ptr::read_volatile(&raw const (*words)[3]),
            ]
        };
        Client { netns: bpf_get_netns_cookie(call.context().cast()), cgroup: bpf_get_current_cgroup_id(), source }
    }
}

/// Stores the record of a steered socket. `false`: memory is short, the connection goes on untracked.
#[inline(always)]
fn record<F: Family>(call: &Call<F>, frontend: &Endpoint, service_id: u32, choice: &Choice) -> bool {
    // SAFETY: helper without arguments.
    let pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    let mut record = Connection::picked(frontend, choice.backend, service_id, choice.id, pid, choice.time);
    let stored = connection_or(call.socket(), &mut record);
    if stored.is_null() {
        return false;
    }
    // SAFETY: storage of a socket that this call holds.
    unsafe {
        let is_mine = (*stored).phase == Phase::New as u8 && (*stored).backend_id == choice.id;
        if !(is_mine && (*stored).since == choice.time) {
            // The socket was used before, or by another thread in this moment.
            track::settle(call.program(), stored);
            record.has_flows = (*stored).has_flows;
            *stored = record;
        }
        (*stored).phase = Phase::Picked as u8;
        if frontend.protocol == UDP {
            (*stored).phase = Phase::Established as u8;
            // The time of the choice may be that of one a moment ago, and datagrams have no later one.
            (*stored).since = bpf_ktime_get_ns();
            if let Some(counters) = counters(choice.id) {
                add(&raw mut (*counters).opened, 1);
                add(&raw mut (*counters).established, 1);
            }
        }
    }
    true
}

/// A socket that was steered once and now connects elsewhere must not keep its record. Fresh TCP sockets, nearly all,
/// are told by having no source port yet.
#[inline(always)]
fn forget_former_use<F: Family>(call: &Call<F>, to: &Endpoint) {
    let socket = call.socket();
    // SAFETY: the socket of a call is never null.
    if to.protocol != UDP && unsafe { ptr::read_volatile(&raw const (*socket).src_port) } == 0 {
        return;
    }
    let stored = connection(socket);
    if !stored.is_null() {
        track::settle(call.program(), stored);
        // SAFETY: storage of a socket that this call holds.
        if unsafe { (*stored).has_flows } == 0 {
            forget(socket);
        }
    }
}
