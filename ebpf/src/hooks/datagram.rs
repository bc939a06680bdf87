//! sendmsg() and recvmsg() of datagram sockets.
//!
//! A flow is a socket and the frontend it sends to. It stays with its backend for as long as [`goes_on`] says, so that
//! protocols of several datagrams (QUIC, TFTP) hold together. Answers carry the frontend's address as their source.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns},
    programs::SockContext,
};
use sluice_common::{
    flows::{Flow, FlowKey, goes_on},
    opening::HAS_FLOWS,
    pick::Tables,
    records::ConnectionRecord,
    tables::Endpoint,
    verdict::Verdict,
};

use super::{
    call::{Call, Family},
    sockops,
};
use crate::{
    lookup::{Choice, KernelTables, Observer, choose, service_of},
    storage::{BACKENDS, FLOWS, connection, connection_or},
};

#[inline(always)]
pub fn sendmsg<F: Family>(call: &Call<F>, observer: &mut impl Observer) -> Verdict {
    let frontend = call.destination();
    let Some(service_id) = service_of(&frontend) else {
        return Verdict::NotOurs;
    };
    observer.finds(service_id);
    if call.is_marked() {
        return Verdict::Marked;
    }
    if let Some(connection) = connected(call, &frontend) {
        observer.takes(connection.backend_id);
        call.redirect(&connection.backend, connection.backend_port);
        return Verdict::Kept;
    }
    // SAFETY: helper on the context.
    let socket = unsafe { bpf_get_socket_cookie(call.context().cast()) };
    let from_frontend = FlowKey::from_frontend(socket, &frontend.address, frontend.port);
    if let Some(flow) = FLOWS.get_ptr_mut(&from_frontend) {
        // SAFETY: a live map value; a concurrent send on the same socket writes the same fields.
        let flow = unsafe { &mut *flow };
        if flow.service_id == service_id {
            let from_backend = FlowKey::from_backend(socket, &flow.address, flow.port);
            // SAFETY: the value is only read.
            let answers = unsafe { FLOWS.get(&from_backend) };
            // SAFETY: helper without arguments.
            let now = unsafe { bpf_ktime_get_ns() };
            if stays(flow, answers, now) {
                flow.last = now;
                observer.takes(flow.backend_id);
                let is_tracked = ensure_answers(&from_backend, answers, &frontend, flow);
                call.redirect(&flow.address, flow.port);
                return if is_tracked { Verdict::Kept } else { Verdict::SteeredUntracked };
            }
        }
    }
    let choice = match choose(call, observer, &frontend, service_id) {
        Ok(choice) => choice,
        Err(verdict) => return verdict,
    };
    let stored = begin_flow(call, socket, &frontend, service_id, &choice);
    call.redirect(&choice.backend.address, choice.backend.port);
    if stored { Verdict::Steered } else { Verdict::SteeredUntracked }
}

#[inline(always)]
pub fn recvmsg<F: Family>(call: &Call<F>) -> Verdict {
    let stored = connection(call.socket());
    if stored.is_null() {
        return Verdict::NotOurs;
    }
    // SAFETY: storage of a socket that this call holds.
    let connection = unsafe { &mut *stored };
    let source = call.endpoint();
    if connection.notes & HAS_FLOWS != 0 {
        // SAFETY: helper on the context.
        let socket = unsafe { bpf_get_socket_cookie(call.context().cast()) };
        if let Some(flow) = FLOWS.get_ptr_mut(&FlowKey::from_backend(socket, &source.address, source.port)) {
            // SAFETY: a live map value; a concurrent answer writes the same fields.
            let flow = unsafe { &mut *flow };
            flow.answered = 1;
            // SAFETY: helper without arguments.
            flow.last = unsafe { bpf_ktime_get_coarse_ns() };
            call.redirect(&flow.address, flow.port);
            return Verdict::Translated;
        }
    }
    if connection.is_open() && is_connected(call) && connection.went_to(&source.address, source.port) {
        sockops::used(connection);
        call.redirect(&connection.frontend, connection.frontend_port);
        return Verdict::Translated;
    }
    Verdict::Stale
}

/// The record of a connected socket that sends to its own frontend. It keeps its backend, zeroed or not, as send()
/// does, which meets no hook: the kernel gives a connected socket the answers of that one peer only.
#[inline(always)]
fn connected<F: Family>(call: &Call<F>, frontend: &Endpoint) -> Option<&'static ConnectionRecord> {
    let stored = connection(call.socket());
    if stored.is_null() {
        return None;
    }
    // SAFETY: storage of a socket that this call holds.
    let connection: &'static mut ConnectionRecord = unsafe { &mut *stored };
    if !(connection.asked_for(frontend) && connection.is_open() && is_connected(call)) {
        return None;
    }
    sockops::used(connection);
    Some(connection)
}

/// Whether the socket has a peer. One that was disconnected (AF_UNSPEC) keeps its record, because no hook sees that.
#[inline(always)]
fn is_connected<F: Family>(call: &Call<F>) -> bool {
    // SAFETY: the socket of a call is never null.
    unsafe { ptr::read_volatile(&raw const (*call.socket()).dst_port) != 0 }
}

/// Forgets the flow of a socket that is released and was never connected through a frontend: its last one, and as a rule
/// its only one.
#[inline(always)]
pub fn forget(ctx: &SockContext, record: &ConnectionRecord) {
    // SAFETY: helper on the context.
    let socket = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let _ = FLOWS.remove(FlowKey::from_frontend(socket, &record.frontend, record.frontend_port));
    let _ = FLOWS.remove(FlowKey::from_backend(socket, &record.backend, record.backend_port));
}

/// [`goes_on`], by the kernel's tables.
#[inline(always)]
fn stays(flow: &Flow, answers: Option<&Flow>, now: u64) -> bool {
    BACKENDS.get(flow.backend_id).is_some_and(|backend| {
        let closed = backend.closed | KernelTables.node_closed(backend.node);
        goes_on(flow, answers, backend, closed, now)
    })
}

#[inline(always)]
fn begin_flow<F: Family>(call: &Call<F>, socket: u64, frontend: &Endpoint, service_id: u32, choice: &Choice) -> bool {
    let flow = Flow {
        address: choice.backend.address,
        port: choice.backend.port,
        padding: 0,
        service_id,
        backend_id: choice.id,
        answered: 0,
        last: choice.time,
    };
    let mut initial = ConnectionRecord {
        frontend: frontend.address,
        backend: flow.address,
        frontend_port: frontend.port,
        backend_port: flow.port,
        protocol: 0,
        phase: 0,
        notes: HAS_FLOWS,
        service_id: 0,
        backend_id: 0,
        pid: 0,
        seen: 0,
        since: 0,
    };
    let stored = connection_or(call.socket(), &mut initial);
    if stored.is_null() {
        return false;
    }
    // SAFETY: storage of a socket that this call holds.
    unsafe {
        (*stored).notes |= HAS_FLOWS;
        if (*stored).protocol == 0 {
            ((*stored).frontend, (*stored).frontend_port) = (frontend.address, frontend.port);
            ((*stored).backend, (*stored).backend_port) = (flow.address, flow.port);
        }
    }
    let from_backend = FlowKey::from_backend(socket, &flow.address, flow.port);
    // SAFETY: the value is only read.
    let answers = unsafe { FLOWS.get(&from_backend) };
    ensure_answers(&from_backend, answers, frontend, &flow)
        && FLOWS.insert(FlowKey::from_frontend(socket, &frontend.address, frontend.port), flow, 0).is_ok()
}

/// Makes sure that answers of the flow's backend are given the frontend's address. The socket may have another flow to
/// the backend: who was answered there is answered here, for the answers do not tell which was meant.
#[inline(always)]
fn ensure_answers(key: &FlowKey, held: Option<&Flow>, frontend: &Endpoint, flow: &Flow) -> bool {
    let (answered, last) = match held {
        Some(answers) if answers.is_to(&frontend.address, frontend.port) => return true,
        Some(answers) => (answers.answered, answers.last),
        None => (0, flow.last),
    };
    let answers = Flow { address: frontend.address, port: frontend.port, answered, last, ..*flow };
    FLOWS.insert(key, answers, 0).is_ok()
}
