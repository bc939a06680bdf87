//! What a change has replaced, and the changes that put it back.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Change, Name, NodeId, Origin, Refusal, Service, ServiceId, State, Target, Touched, Zero,
    document::{NodeDocument, ServiceDocument},
};

/// Services and nodes of one change; the former documents of more are not kept.
const MOST: usize = 1000;

/// What there was before a change, and how to tell that what the change made of it is still there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Undo {
    services: Vec<FormerService>,
    nodes: Vec<FormerNode>,
    zeros: Vec<FormerZero>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FormerService {
    name: Name,
    /// `None`: the change made it.
    before: Option<Box<ServiceDocument>>,
    origin: Origin,
    /// `None`: the change removed it.
    after: Option<(ServiceId, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FormerNode {
    name: Name,
    /// `None`: no document declared it.
    before: Option<NodeDocument>,
    after: Option<(NodeId, u64)>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FormerZero {
    target: Target,
    before: Option<Zero>,
    after: Option<Zero>,
}

impl Undo {
    /// What a change from `before` to `after` has replaced; `None` when that is nothing, or too much to be kept.
    pub fn of(before: &State, after: &State, touched: &Touched) -> Option<Self> {
        let Touched { services, removed_services, removed_backends: _, nodes, removed_nodes } = touched;
        if services.len() + removed_services.len() + nodes.len() + removed_nodes.len() > MOST {
            return None;
        }
        let mut undo = Self::default();
        let mut ids: Vec<_> = services.iter().chain(removed_services.iter().map(|(id, _)| id)).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let (was, is) = (before.service_by_id(*id), after.service_by_id(*id));
            undo.service(before, was.map(AsRef::as_ref), is.map(AsRef::as_ref));
        }
        let mut ids: Vec<_> = nodes.iter().chain(removed_nodes.iter().map(|(id, _)| id)).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let (was, is) = (before.node_by_id(*id), after.node_by_id(*id));
            let Some(name) = was.or(is).map(|node| node.name.clone()) else { continue };
            undo.zero(
                Target::Node(name.clone()),
                was.and_then(|node| node.zero.as_ref()),
                is.and_then(|node| node.zero.as_ref()),
            );
            let (was, is) = (was.filter(|node| node.declared), is.filter(|node| node.declared));
            let after = is.map(|node| (node.id, node.generation));
            if was.map(|node| (node.id, node.generation)) != after {
                undo.nodes.push(FormerNode { name, before: was.map(|node| node.document()), after });
            }
        }
        (undo != Self::default()).then_some(undo)
    }

    fn service(&mut self, before: &State, was: Option<&Service>, is: Option<&Service>) {
        let Some(name) = was.or(is).map(|service| service.name.clone()) else { return };
        let zero = |service: Option<&Service>, name: &Name| {
            let backend = service?.backends.iter().find(|backend| backend.name == *name)?;
            backend.zero.clone()
        };
        let backends = was.into_iter().chain(is).flat_map(|service| &service.backends);
        let mut zeroed: Vec<_> =
            backends.filter(|backend| backend.zero.is_some()).map(|backend| &backend.name).collect();
        zeroed.sort_unstable();
        zeroed.dedup();
        for backend in zeroed {
            let target = Target::Backend { service: name.clone(), backend: backend.clone() };
            self.zero(target, zero(was, backend).as_ref(), zero(is, backend).as_ref());
        }
        let after = is.map(|service| (service.id, service.generation));
        if was.map(|service| (service.id, service.generation)) == after {
            return;
        }
        let origin = match was {
            // What differs from its file does so again, unless it has to be made.
            Some(was) if !was.is_edited() || is.is_none() => was.origin.clone(),
            Some(_) | None => Origin::Api,
        };
        self.services.push(FormerService {
            name,
            before: was.map(|was| Box::new(before.document(was))),
            origin,
            after,
        });
    }

    fn zero(&mut self, target: Target, was: Option<&Arc<Zero>>, is: Option<&Arc<Zero>>) {
        let (before, after) = (was.map(|zero| without_drain(zero)), is.map(|zero| without_drain(zero)));
        // A drain that is begun or ended of a target that stays zeroed takes nothing from anybody.
        if before != after {
            self.zeros.push(FormerZero { target, before, after });
        }
    }

    /// The changes that put it back, to be made together. A zero whose time has passed meanwhile is none any more.
    ///
    /// # Errors
    /// When something of it has been changed since, or there is nothing to put back.
    pub fn changes(&self, now: &State, time: Timestamp, force: bool) -> Result<Vec<Change>, Refusal> {
        let mut changes = Vec::new();
        let (declared, undeclared): (Vec<_>, Vec<_>) = self.nodes.iter().partition(|node| node.before.is_some());
        for former in &self.nodes {
            let is = now.node(former.name.as_str()).filter(|node| node.declared);
            same(&format!("node/{}", former.name), is.map(|node| (node.id, node.generation)) == former.after)?;
        }
        let documents = declared.into_iter().filter_map(|former| former.before.clone());
        changes.extend(documents.map(|document| Change::PutNode { document: Box::new(document) }));
        for former in &self.services {
            let is = now.service(former.name.as_str());
            same(
                &format!("service/{}", former.name),
                is.map(|service| (service.id, service.generation)) == former.after,
            )?;
            changes.push(match &former.before {
                Some(document) => {
                    Change::PutService { document: document.clone(), origin: former.origin.clone(), if_match: None }
                }
                None => Change::DeleteService { service: former.name.clone(), if_match: None },
            });
        }
        for former in &self.zeros {
            let is = now.zero(&former.target).map(|zero| without_drain(zero));
            same(&former.target.to_string(), is == former.after)?;
            match &former.before {
                Some(zero) if zero.expires.is_some_and(|expires| expires <= time) => {}
                Some(zero) => {
                    changes.push(Change::Zero { target: former.target.clone(), zero: zero.clone(), drain: None, force })
                }
                // Where its backend goes, its zero goes too.
                None if self.removes(&former.target) => {}
                None => changes.push(Change::Restore { target: former.target.clone() }),
            }
        }
        changes.extend(undeclared.into_iter().map(|former| Change::UndeclareNode { node: former.name.clone() }));
        if changes.is_empty() {
            return Err(Refusal::conflict("nothing is left of it that could be put back", Vec::new()));
        }
        Ok(changes)
    }

    /// Whether putting it back removes the service of a target.
    fn removes(&self, target: &Target) -> bool {
        let Target::Backend { service, .. } = target else { return false };
        self.services.iter().any(|former| former.before.is_none() && former.name == *service)
    }
}

fn without_drain(zero: &Zero) -> Zero {
    Zero { drain: None, ..zero.clone() }
}

/// # Errors
/// When it is not.
fn same(object: &str, is_same: bool) -> Result<(), Refusal> {
    if is_same {
        return Ok(());
    }
    let advice = format!("undo what came later first (`sluice history {object}`), or apply what you want");
    Err(Refusal::conflict(format!("{object} has been changed since: {advice}"), Vec::new()))
}
