//! The kernel's form of single things: a frontend, a backend, and why something is closed.

use sluice_common::tables::{
    self, CLOSED_EJECTED, CLOSED_FLOWS, CLOSED_UNREADY, CLOSED_WEIGHT, CLOSED_ZERO, Endpoint, TCP, UDP,
};

use crate::model::{Backend, Frontend, Node, Service, ServiceId, Span, State, service::Protocol};

/// The kernel's form of a frontend.
pub fn endpoint(frontend: &Frontend) -> Endpoint {
    let protocol = match frontend.protocol {
        Protocol::Tcp => TCP,
        Protocol::Udp => UDP,
    };
    Endpoint::new(frontend.address, protocol)
}

/// The service that should have this frontend.
pub fn frontend_owner(state: &State, endpoint: &Endpoint) -> Option<ServiceId> {
    let protocol = if endpoint.protocol == UDP { Protocol::Udp } else { Protocol::Tcp };
    state.frontend(&Frontend { address: endpoint.socket_addr(), protocol })
}

/// `panic`: whether the service is in panic, see [`State::panics`].
pub fn entry(service: &Service, backend: &Backend, panic: bool) -> tables::BackendEntry {
    let endpoint = Endpoint::new(backend.address, 0);
    tables::BackendEntry {
        address: endpoint.address,
        port: endpoint.port,
        keeps_flows: service.keeps_flows().into(),
        node: backend.node.0,
        closed: closed(service, backend, panic),
        flow_timeout: service.flow_timeout.map_or(0, Span::as_millis),
    }
}

/// Why a node takes no new connection; 0 when it does.
pub fn closed_node(node: &Node) -> u32 {
    match node.zero.as_deref() {
        Some(zero) if zero.has_drained() => CLOSED_ZERO | CLOSED_FLOWS,
        Some(_) => CLOSED_ZERO,
        None => 0,
    }
}

/// Why a backend takes no new connection; 0 when it does. Weight 0 closes too, so that flows and affinity end with it as
/// they do with a zero. A panic closes no backend for what the backend cannot help.
pub fn closed(service: &Service, backend: &Backend, panic: bool) -> u32 {
    let group = service.groups.get(backend.group as usize).map_or(0, |group| group.weight);
    let zero = match backend.zero.as_deref() {
        // The end of a drain is a write where that changes something.
        Some(zero) if zero.has_drained() && service.keeps_flows() => CLOSED_ZERO | CLOSED_FLOWS,
        Some(_) => CLOSED_ZERO,
        None => 0,
    };
    let weight = if backend.weight == 0 || group == 0 { CLOSED_WEIGHT } else { 0 };
    let health = match &backend.health {
        Some(health) if !backend.is_fit(panic) => {
            let unready = if health.is_ready() { 0 } else { CLOSED_UNREADY };
            let ejected = if health.is_ejected() { CLOSED_EJECTED } else { 0 };
            unready | ejected
        }
        Some(_) | None => 0,
    };
    zero | weight | health
}
