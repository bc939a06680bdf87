//! sendmsg() and recvmsg() of datagram sockets.
//!
//! A flow is a socket and the frontend it sends to. It stays with its backend while that is open and the flow is not
//! idle for [`FLOW_IDLE`], or [`ANSWERED_FLOW_IDLE`] once it was answered, so that protocols of several datagrams (QUIC,
//! TFTP) hold together; a zero moves it with the next datagram. Answers carry the frontend's address as their source.

use core::ptr;

use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_coarse_ns, bpf_ktime_get_ns};
use sluice_common::{
    pick::open,
    records::{ANSWERED_FLOW_IDLE, ConnectionRecord, FLOW_IDLE, Flow, FlowKey},
    tables::Endpoint,
    verdict::Verdict,
};

use super::{
    call::{Call, Family},
    sockops,
};
use crate::{
    lookup::{Choice, KernelTables, Observer, choose, service_of},
    storage::{FLOWS, connection, connection_or},
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
    let to_frontend = key(socket, &frontend.address, frontend.port, false);
    if let Some(flow) = FLOWS.get_ptr_mut(&to_frontend) {
        // SAFETY: a live map value; a concurrent send on the same socket writes the same fields.
        let flow = unsafe { &mut *flow };
        // SAFETY: helper without arguments.
        let now = unsafe { bpf_ktime_get_ns() };
        if flow.service_id == service_id && is_in_use(socket, flow, now) && is_same_and_open(flow) {
            flow.last = now;
            observer.takes(flow.backend_id);
            let answers = ensure_answers(socket, &frontend, flow);
            call.redirect(&flow.address, flow.port);
            return if answers { Verdict::Kept } else { Verdict::SteeredUntracked };
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
    if connection.has_flows != 0 {
        // SAFETY: helper on the context.
        let socket = unsafe { bpf_get_socket_cookie(call.context().cast()) };
        if let Some(flow) = FLOWS.get_ptr_mut(&key(socket, &source.address, source.port, true)) {
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

/// Whether the flow, seen from the frontend, was used lately.
#[inline(always)]
fn is_in_use(socket: u64, flow: &Flow, now: u64) -> bool {
    let idle = now.wrapping_sub(flow.last);
    if idle < FLOW_IDLE {
        return true;
    }
    // SAFETY: the value is only read.
    match unsafe { FLOWS.get(&key(socket, &flow.address, flow.port, true)) } {
        Some(answers) if answers.answered != 0 => {
            idle < ANSWERED_FLOW_IDLE || now.saturating_sub(answers.last) < ANSWERED_FLOW_IDLE
        }
        _ => false,
    }
}

/// Whether the flow's backend is open and still is what it was when the flow began.
#[inline(always)]
fn is_same_and_open(flow: &Flow) -> bool {
    open(&KernelTables, flow.backend_id).is_some_and(|backend| {
        backend.port == flow.port
            && backend.address[3] == flow.address[3]
            && backend.address[2] == flow.address[2]
            && backend.address[1] == flow.address[1]
            && backend.address[0] == flow.address[0]
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
        frontend: [0; 4],
        backend: [0; 4],
        frontend_port: 0,
        backend_port: 0,
        protocol: 0,
        phase: 0,
        has_flows: 1,
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
    unsafe { (*stored).has_flows = 1 };
    ensure_answers(socket, frontend, &flow)
        && FLOWS.insert(key(socket, &frontend.address, frontend.port, false), flow, 0).is_ok()
}

/// Makes sure that answers of the flow's backend are given the frontend's address.
#[inline(always)]
fn ensure_answers(socket: u64, frontend: &Endpoint, flow: &Flow) -> bool {
    let key = key(socket, &flow.address, flow.port, true);
    // SAFETY: the value is only read.
    if let Some(answer) = unsafe { FLOWS.get(&key) }
        && answer.port == frontend.port
        && answer.address[3] == frontend.address[3]
        && answer.address[2] == frontend.address[2]
        && answer.address[1] == frontend.address[1]
        && answer.address[0] == frontend.address[0]
    {
        return true;
    }
    let answer = Flow { address: frontend.address, port: frontend.port, ..*flow };
    FLOWS.insert(key, answer, 0).is_ok()
}

#[inline(always)]
fn key(socket: u64, address: &[u32; 4], port: u16, answer: bool) -> FlowKey {
    FlowKey { socket, address: *address, port, answer: answer as u16, padding: 0 }
}
