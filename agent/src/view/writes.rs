//! Writes to the kernel's tables as people read them: with names, where [`MapOp`] has ids.

use crate::{
    model::{BackendId, NodeId, ServiceId, State},
    plan::{MapOp, Names},
};

/// What a change would write. What the change removes has its name in the state before.
pub fn lines<'a>(ops: impl IntoIterator<Item = &'a MapOp>, before: &State, after: &State) -> Vec<String> {
    let names = NamedWrites { before, after };
    ops.into_iter().map(|op| op.line(&names)).collect()
}

struct NamedWrites<'a> {
    before: &'a State,
    after: &'a State,
}

impl Names for NamedWrites<'_> {
    fn node(&self, id: u32) -> String {
        let node = self.find(|state| state.node_by_id(NodeId(id)));
        node.map_or_else(|| format!("node {id}"), |node| format!("node/{}", node.name))
    }

    fn service(&self, id: u32) -> String {
        let service = self.find(|state| state.service_by_id(ServiceId(id)));
        service.map_or_else(|| format!("service {id}"), |service| format!("service {}", service.name))
    }

    fn backend(&self, id: u32) -> String {
        let backend = self.find(|state| state.backend(BackendId(id)));
        backend
            .map_or_else(|| format!("backend {id}"), |(service, backend)| format!("{}/{}", service.name, backend.name))
    }
}

impl NamedWrites<'_> {
    fn find<'a, T>(&'a self, look: impl Fn(&'a State) -> Option<T>) -> Option<T> {
        look(self.after).or_else(|| look(self.before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Change, Limits, Origin};

    #[test]
    fn what_is_known_has_its_name() {
        let empty = State::new(Limits { services: 8, backends: 8, nodes: 8, frontends: 8 });
        let document = crate::http::testing::shop();
        let document = serde_json::from_value(document).unwrap();
        let put = Change::PutService { document: Box::new(document), origin: Origin::Api, if_match: None };
        let state = empty.apply(&put, jiff::Timestamp::UNIX_EPOCH).unwrap().state;
        let (service, node) = (state.service("shop").unwrap(), state.node("node-1").unwrap());
        let backend = service.backends[0].id.0;
        let ops = [
            MapOp::SetNode { node: node.id.0, closed: 1 },
            MapOp::CloseBackend { backend, closed: 0 },
            MapOp::SetDraining { backend, draining: None },
            MapOp::ForgetService { service: service.id.0 },
            MapOp::SetNode { node: 7, closed: 0 },
        ];
        let wanted = ["node/node-1: closed", "shop/n1: open", "shop/n1: stays", "service shop: forget", "node 7: open"];
        assert_eq!(lines(&ops, &empty, &state), wanted);
        assert_eq!(lines(&ops, &state, &empty), wanted, "one that is gone afterwards");
    }
}
