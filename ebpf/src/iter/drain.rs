//! Connections of draining backends: counted, and closed when that loses no request.
//!
//! `survey` walks the steered sockets of the whole host and only counts; it also notes the network namespaces in which
//! there is something to close. `visit_tcp` and `visit_udp` walk one namespace. They hold the lock of each socket, so that
//! nothing can be sent or received between the look and the close; or they tell the agent, which ends the connection as
//! its peer would.

use core::{ffi::c_void, mem::transmute};

use aya_ebpf::helpers::generated::bpf_skc_to_tcp_sock;
use sluice_common::{
    drain::{DEFAULT_QUIET, Doing, Draining, Inbound, NamespaceEntry, REQUESTS, Remains, judge, patience},
    flight::{Activity, Side},
    records::{ConnectionRecord, Phase},
    tables::{Endpoint, TCP, UDP},
};

use super::{
    ending::{self, Way},
    walk::{self, Records, Sockets},
};
use crate::{
    socket,
    storage::{CALLERS, DRAINING, INBOUND, NAMESPACES, REMAINS, can_destroy, connection, hz},
};

const TCP_SYN_SENT: u32 = 2;
const TCP_CLOSE: u32 = 7;
const TCP_LAST_ACK: u32 = 9;
const TCP_LISTEN: u32 = 10;

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn survey(ctx: *mut Records) -> i32 {
    walk::records(ctx).map_or(0, |(found, record)| count(found, record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn survey_tcp(ctx: *mut Sockets) -> i32 {
    walk::tcp(ctx).map_or(0, |(found, record)| count(found, record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn survey_udp(ctx: *mut Sockets) -> i32 {
    walk::udp(ctx).map_or(0, |(found, record)| count(found, record))
}

#[inline(always)]
fn count(found: *mut c_void, record: &ConnectionRecord) -> i32 {
    note_caller(record, found);
    let Some(remains) = remains_of(record, found) else {
        return 0;
    };
    let (doing, closable) = look(record, found, remains);
    if ending::is_over(found) {
        if closable {
            note_place(found, record.pid);
        }
        return 0;
    }
    if remains.oldest == 0 || record.since < remains.oldest {
        remains.oldest = record.since;
    }
    match doing {
        Doing::Connecting => remains.connecting += 1,
        Doing::Datagrams => remains.datagrams += 1,
        Doing::InFlight => remains.in_flight += 1,
        Doing::Idle => remains.idle += 1,
        Doing::Session => {
            remains.idle += 1;
            remains.sessions += 1;
            spare_accepted(found);
        }
    }
    if closable {
        remains.closable += 1;
        note_place(found, record.pid);
    }
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn visit_tcp(ctx: *mut Sockets) -> i32 {
    // SAFETY: the context lives as long as the program runs.
    let found = unsafe { (*ctx).socket };
    if found.is_null() {
        return 0;
    }
    // SAFETY: the helper checks the socket; null for requests and TIME_WAIT.
    let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
    if tcp.is_null() {
        return 0;
    }
    let stored = connection(tcp);
    if !stored.is_null() {
        // SAFETY: storage of a socket that the iterator holds, and locks.
        let record = unsafe { &*stored };
        if let Some(remains) = remains_of(record, found) {
            match look(record, found, remains) {
                (_, false) => {}
                (Doing::Idle, true) => match ending::way(found, remains.allowed) {
                    Way::Told => ending::tell(walk::seq(ctx), found, tcp, record.backend_id, Side::Caller),
                    Way::Over => drop(destroy(found)),
                    Way::Abort => close(found, &mut remains.closed_idle, &mut remains.refused),
                },
                (_, true) => close(found, &mut remains.closed_late, &mut remains.refused),
            }
            return 0;
        }
    }
    accepted(walk::seq(ctx), found, tcp);
    0
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn visit_udp(ctx: *mut Sockets) -> i32 {
    if let Some((found, record)) = walk::udp(ctx)
        && record.protocol == UDP
        && let Some(remains) = remains_of(record, found)
        && look(record, found, remains).1
    {
        close(found, &mut remains.closed_datagrams, &mut remains.refused);
    }
    0
}

/// The counts for this connection, if its backend is drained and the record is about what the socket does now. One that
/// waits for its SYN (TCP_FASTOPEN_CONNECT) is among them.
#[inline(always)]
fn remains_of(record: &ConnectionRecord, found: *mut c_void) -> Option<&'static mut Remains> {
    if !record.is_open() && !(record.phase == Phase::Picked as u8 && record.protocol == TCP) {
        return None;
    }
    // SAFETY: a live map value; passes run one at a time, and nobody else writes it meanwhile.
    let remains = unsafe { &mut *REMAINS.get_ptr_mut(record.backend_id)? };
    let state = socket::state(found);
    let is_there = record.protocol != TCP
        || (state != TCP_CLOSE && (record.phase != Phase::Picked as u8 || state == TCP_SYN_SENT));
    let (address, port) = socket::peer(found);
    (is_there && record.went_to(&address, port)).then_some(remains)
}

#[inline(always)]
fn look(record: &ConnectionRecord, found: *mut c_void, pass: &Remains) -> (Doing, bool) {
    let activity = || {
        // SAFETY: the helper checks the socket.
        let tcp: *mut c_void = unsafe { bpf_skc_to_tcp_sock(found) }.cast();
        (!tcp.is_null()).then(|| socket::activity(tcp).without_fin(socket::state(found)))
    };
    // SAFETY: the value is copied at once; the agent replaces it as a whole.
    match unsafe { DRAINING.get(record.backend_id) }.copied() {
        Some(draining) => judge(record, activity, &draining, pass, hz()),
        // Restored during the pass: the connection counts, and stays.
        None => judge(record, activity, &Draining { quiet: 0, terms: !pass.terms }, pass, hz()),
    }
}

/// Counts a connection that a local backend has accepted, and closes it if that was asked for.
#[inline(always)]
fn accepted(seq: *mut c_void, found: *mut c_void, tcp: *mut c_void) {
    let (address, port) = socket::local(found);
    let Some(inbound) = INBOUND.get_ptr_mut(Endpoint::v6(address, port, TCP)) else {
        return;
    };
    let state = socket::state(found);
    if state == TCP_LISTEN {
        return;
    }
    // SAFETY: a live map value; passes run one at a time, and nobody else writes it meanwhile.
    let inbound: &mut Inbound = unsafe { &mut *inbound };
    let way = ending::way(found, allowed(inbound.backend_id));
    if way == Way::Over {
        destroy(found);
        return;
    }
    let activity = socket::activity(tcp).without_fin(state);
    if state == TCP_LAST_ACK && activity.unacknowledged == 0 {
        // Both have closed it, and the caller has all that the server said.
        return;
    }
    let quiet = if inbound.quiet == 0 { DEFAULT_QUIET } else { inbound.quiet };
    let patience = patience(quiet, hz());
    if activity.is_busy(Side::Server, patience) {
        inbound.in_flight += 1;
        return;
    }
    inbound.idle += 1;
    // SAFETY: as in `look`.
    let held = unsafe { DRAINING.get(inbound.backend_id) }.copied();
    let allowed = held == Some(Draining { quiet: inbound.quiet, terms: inbound.terms });
    if inbound.quiet == 0
        || !allowed
        || has_only_greeted(inbound, &activity)
        || is_steered(found)
        || !activity.may_close(Side::Server, patience)
    {
        return;
    }
    if way == Way::Told {
        ending::tell(seq, found, tcp, inbound.backend_id, Side::Server);
    } else if destroy(found) {
        inbound.closed += 1;
    }
}

/// See [`Remains::allowed`]; nothing for a backend that is not looked at.
#[inline(always)]
fn allowed(backend_id: u32) -> u32 {
    // SAFETY: the value is copied at once.
    unsafe { REMAINS.get(backend_id) }.map_or(0, |pass| pass.allowed)
}

/// Whether the server alone has spoken, and the service does not say that its connections carry requests.
#[inline(always)]
fn has_only_greeted(inbound: &Inbound, activity: &Activity) -> bool {
    allowed(inbound.backend_id) & REQUESTS == 0 && activity.bytes_received == 0 && activity.bytes_sent > 0
}

/// Whether the other end of an accepted connection is a steered socket of this host.
#[inline(always)]
fn is_steered(found: *mut c_void) -> bool {
    let (address, port) = socket::peer(found);
    // SAFETY: the value is not looked at.
    unsafe { CALLERS.get(Endpoint::v6(address, port, TCP)) }.is_some()
}

#[inline(always)]
fn close(found: *mut c_void, closed: &mut u32, refused: &mut u32) {
    if destroy(found) {
        *closed += 1;
    } else {
        *refused += 1;
    }
}

/// The call that the agent turns into one of the kernel function `bpf_sock_destroy`: Rust has no way to name it.
const DESTROY: usize = sluice_common::drain::DESTROY as usize;

/// Ends the connection as ECONNABORTED for its owner, with a reset for the peer. False when this kernel cannot.
#[inline(always)]
fn destroy(found: *mut c_void) -> bool {
    if !can_destroy() {
        return false;
    }
    // SAFETY: the agent patches the call before it loads the program; without the kernel function it is never reached.
    unsafe {
        let bpf_sock_destroy: unsafe extern "C" fn(*mut c_void) -> i64 = transmute(DESTROY);
        bpf_sock_destroy(found) as i32 == 0
    }
}

/// Notes the caller's end of a connection that must not be closed on the accepting side: the rule of the caller's side
/// decides about it. When the table is full, this pass closes nothing that was accepted there.
#[inline(always)]
fn note_caller(record: &ConnectionRecord, found: *mut c_void) {
    if record.protocol != TCP {
        return;
    }
    let (address, port) = socket::peer(found);
    let Some(inbound) = INBOUND.get_ptr_mut(Endpoint::v6(address, port, TCP)) else {
        return;
    };
    // SAFETY: a live map value; passes run one at a time, and nobody else writes it meanwhile.
    let inbound = unsafe { &mut *inbound };
    if inbound.quiet != 0 {
        let (address, port) = socket::local(found);
        if CALLERS.insert(Endpoint::v6(address, port, TCP), 0, 0).is_err() {
            inbound.quiet = 0;
        }
    }
}

/// Where one caller holds a session, what others have opened may be sessions too: nothing that was accepted there is closed
/// in this pass.
#[inline(always)]
fn spare_accepted(found: *mut c_void) {
    let (address, port) = socket::peer(found);
    if let Some(inbound) = INBOUND.get_ptr_mut(Endpoint::v6(address, port, TCP)) {
        // SAFETY: as in `note_caller`.
        unsafe { (*inbound).quiet = 0 };
    }
}

/// Notes where there is something to close. When the table is full, the next pass finds the rest.
#[inline(always)]
fn note_place(found: *mut c_void, pid: u32) {
    let netns = socket::netns(found);
    match NAMESPACES.get_ptr_mut(netns) {
        // SAFETY: a live map value; only this program writes it.
        Some(place) => unsafe { (*place).closable += 1 },
        None => {
            let place = NamespaceEntry { pid, closable: 1, inode: socket::netns_inode(found), padding: 0 };
            let _ = NAMESPACES.insert(netns, place, 0);
        }
    }
}
