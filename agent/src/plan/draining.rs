//! The backends whose entry in DRAINING a change may concern: their connections may be closed, or no longer.

use crate::model::{Backend, Frontend, IdleClose, NodeId, Service, ServiceId, ServiceProtocol, State, Zero};

/// Backends of `after` that may be drained otherwise than before, among the services and on the nodes that a change
/// touches. Those that left the configuration are not among them.
pub fn concerned<'a>(
    before: &State,
    after: &'a State,
    services: &[ServiceId],
    nodes: &[NodeId],
) -> Vec<(&'a Service, &'a Backend)> {
    let mut found: Vec<(&Service, &Backend)> = Vec::new();
    for node in nodes.iter().filter(|id| node_drain(before, **id) != node_drain(after, **id)) {
        found.extend(after.node_backends(*node).map(|(service, backend)| (&**service, backend)));
    }
    for (id, service) in services.iter().filter_map(|id| Some((id, after.service_by_id(*id)?))) {
        let old = before.service_by_id(*id).filter(|old| says(old) == says(service));
        let old = |index: usize| old.and_then(|old| old.backends.get(index));
        let others =
            service.backends.iter().enumerate().filter(|(index, new)| !old(*index).is_some_and(|old| same(old, new)));
        found.extend(others.map(|(_, backend)| (&**service, backend)));
    }
    found
}

/// What the documents of a service say of idle connections. A backend's own port changes with its id.
fn says(service: &Service) -> (Option<ServiceProtocol>, Option<u32>, &[Frontend]) {
    (service.protocol, service.idle_close, &service.frontends)
}

fn same(old: &Backend, new: &Backend) -> bool {
    let own = |backend: &Backend| drain(backend.zero.as_deref());
    (old.id, old.node, own(old)) == (new.id, new.node, own(new))
}

fn node_drain(state: &State, node: NodeId) -> Option<(IdleClose, u32)> {
    drain(state.node_by_id(node)?.zero.as_deref())
}

/// What of a drain that lasts goes to the kernel.
fn drain(zero: Option<&Zero>) -> Option<(IdleClose, u32)> {
    let drain = zero?.lasting_drain()?;
    Some((drain.idle_close, drain.terms()))
}
