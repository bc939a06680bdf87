//! What a zero or a restore can aim at, found in the state.

use std::sync::Arc;

use super::{BackendId, NodeId, State, Target, Zero};

impl State {
    /// Everything that is zeroed, and how.
    pub fn zeroed(&self) -> Vec<(Target, Arc<Zero>)> {
        let nodes = self.nodes().filter_map(|node| Some((Target::Node(node.name.clone()), node.zero.clone()?)));
        let backends = self.services().flat_map(|service| {
            service.backends.iter().filter_map(|backend| {
                let target = Target::Backend { service: service.name.clone(), backend: backend.name.clone() };
                Some((target, backend.zero.clone()?))
            })
        });
        nodes.chain(backends).collect()
    }

    /// How it is zeroed, if it is.
    pub fn zero(&self, target: &Target) -> Option<&Arc<Zero>> {
        match target {
            Target::Node(node) => self.node(node.as_str())?.zero.as_ref(),
            Target::Backend { service, backend } => {
                let backends = &self.service(service.as_str())?.backends;
                backends.iter().find(|held| held.name == *backend)?.zero.as_ref()
            }
        }
    }

    pub fn is_zeroed(&self, target: &Target) -> bool {
        self.zero(target).is_some()
    }

    /// The backends that it means, in the order of their ids; none when it does not exist.
    pub fn backends_of(&self, target: &Target) -> Vec<BackendId> {
        let mut ids: Vec<BackendId> = match target {
            Target::Node(node) => {
                let node = self.node(node.as_str()).map_or(NodeId(0), |node| node.id);
                self.node_backends(node).map(|(_, backend)| backend.id).collect()
            }
            Target::Backend { service, backend } => self
                .service(service.as_str())
                .and_then(|service| service.backends.iter().find(|held| held.name == *backend))
                .map(|backend| backend.id)
                .into_iter()
                .collect(),
        };
        ids.sort_unstable();
        ids
    }
}
