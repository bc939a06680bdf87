//! From what the kernel holds to what is desired: every change of the tables, in the one safe order.
//!
//! Programs read the tables between any two writes, and the agent may die between them, so that every prefix of the
//! order is a state to live with. The hazards, and where each is met:
//!
//! 1. [`Step::Close`]: nodes and backends that take nothing any more are closed first, for somebody waits for that and
//!    the proof begins there. An open backend in whose service another one opens is not among them: it may be all
//!    there is, and closes in step 5.
//! 2. [`Step::Keep`]: what is drained no longer is kept before it is opened, so that no new connection is closed as idle.
//! 3. [`Step::Open`]: nodes open. Their backends have no slots yet, or those of a moment ago when they closed.
//! 4. [`Step::Drain`]: connections may be closed once nothing new comes to them.
//! 5. [`Step::Serve`], one for each service: what is referenced comes before what refers to it (backends, slots, flip,
//!    frontends), and what closes goes after the flip to the table without it. What somebody closes does so, too, when
//!    there is no room for that table, or the kernel refuses it.
//! 6. [`Step::Remove`]: frontends go, and then what they led to is closed. Ids and slots are given out again only after
//!    a grace period, see [`Retired`].
//! 7. [`Step::Measure`]: what nothing depends on.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use sluice_common::{
    pick::mix,
    tables::{BackendEntry, CLOSED_EJECTED, CLOSED_REMOVED, CLOSED_UNREADY, Endpoint},
};

use super::{
    MapOp, Programmed, Retired, draining,
    entry::{closed, closed_node, endpoint, entry, frontend_owner},
    regions::Regions,
    service::{self, Built},
};
use crate::{
    control::warmup::Ramps,
    model::{BackendId, NodeId, Service, ServiceId, State, Touched},
};

/// What is to be reached, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Goal<'a> {
    /// The state that the kernel holds; an empty one when that is not known.
    pub before: &'a State,
    pub after: &'a State,
    pub ramps_before: &'a Ramps,
    pub ramps: &'a Ramps,
    /// Whether a service in which nothing opens gets its table later: what it closes is closed at once all the same.
    pub at_leisure: bool,
    /// Where the sequences of new services begin.
    pub seed: u64,
}

/// What a transition looks at: its work is proportional to this.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    services: Vec<ServiceId>,
    nodes: Vec<NodeId>,
    removed_services: Vec<ServiceId>,
    removed_backends: Vec<BackendId>,
    removed_nodes: Vec<NodeId>,
    /// Frontends that lead to no service.
    orphans: Vec<Endpoint>,
}

/// Writes in the order in which they are to run, and what follows them.
#[derive(Debug, Default)]
pub struct Transition {
    pub steps: Vec<Step>,
    /// Services whose tables do not fit into SLOTS.
    pub without_room: Vec<NoRoom>,
    /// Services whose tables follow at leisure.
    pub stale: Vec<ServiceId>,
    /// Nodes whose services' tables follow at leisure.
    pub stale_nodes: Vec<NodeId>,
    /// What nothing refers to after the last step.
    pub retired: Retired,
}

/// Writes that belong together; see the order above.
#[derive(Debug)]
pub enum Step {
    Close(Vec<MapOp>),
    Keep(Vec<MapOp>),
    Open(Vec<MapOp>),
    Drain(Vec<MapOp>),
    Serve {
        service: Arc<Service>,
        /// Absent when it finds no room.
        table: Option<Built>,
        writes: Vec<MapOp>,
        /// What closes and drains after them; of that, what [`Step::is_order`] says holds whatever became of them.
        late: Vec<MapOp>,
    },
    Remove(Vec<MapOp>),
    Measure(Vec<MapOp>),
}

/// A table that finds no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    pub service: ServiceId,
    /// Slots that it needs.
    pub entries: usize,
}

impl From<&Touched> for Scope {
    fn from(touched: &Touched) -> Self {
        let Touched { services, removed_services, removed_backends, nodes, removed_nodes } = touched;
        Self {
            services: services.clone(),
            nodes: nodes.clone(),
            removed_services: removed_services.iter().map(|(id, _)| *id).collect(),
            removed_backends: removed_backends.clone(),
            removed_nodes: removed_nodes.iter().map(|(id, _)| *id).collect(),
            orphans: Vec::new(),
        }
    }
}

impl Scope {
    /// The tables of some services.
    pub fn tables(services: &[ServiceId]) -> Self {
        Self { services: services.to_vec(), ..Self::default() }
    }

    /// All of the state, and all that the kernel holds beyond it.
    pub fn everything(have: &Programmed, state: &State) -> Self {
        let backends: HashSet<u32> =
            state.services().flat_map(|service| &service.backends).map(|backend| backend.id.0).collect();
        let held_backends: BTreeSet<u32> = have.backends.keys().chain(have.draining.keys()).copied().collect();
        let services = have.services.keys().map(|id| ServiceId(*id));
        let nodes = have.nodes.keys().map(|id| NodeId(*id));
        Self {
            services: state.services().map(|service| service.id).collect(),
            nodes: state.nodes().map(|node| node.id).collect(),
            removed_services: services.filter(|id| state.service_by_id(*id).is_none()).collect(),
            removed_backends: held_backends
                .difference(&backends.into_iter().collect())
                .copied()
                .map(BackendId)
                .collect(),
            removed_nodes: nodes.filter(|id| state.node_by_id(*id).is_none()).collect(),
            orphans: have.frontends.keys().filter(|held| frontend_owner(state, held).is_none()).copied().collect(),
        }
    }
}

impl Step {
    /// Whether a write was ordered by somebody, so that it holds even when the table in which others open cannot be
    /// written. A backend that is only found unhealthy stays then: it may be all there is.
    pub fn is_order(write: &MapOp) -> bool {
        !matches!(write, MapOp::CloseBackend { closed, .. } if closed & !(CLOSED_UNREADY | CLOSED_EJECTED) == 0)
    }

    /// Its writes, in order.
    pub fn writes(&self) -> impl Iterator<Item = &MapOp> {
        let (writes, late) = match self {
            Self::Close(writes)
            | Self::Keep(writes)
            | Self::Open(writes)
            | Self::Drain(writes)
            | Self::Remove(writes)
            | Self::Measure(writes) => (writes, [].as_slice()),
            Self::Serve { writes, late, .. } => (writes, late.as_slice()),
        };
        writes.iter().chain(late)
    }
}

impl Transition {
    /// All writes, in order.
    pub fn writes(&self) -> impl Iterator<Item = &MapOp> {
        self.steps.iter().flat_map(Step::writes)
    }
}

/// Plans the way from `have` to the goal's state after the change, for what `scope` names.
pub fn transition(have: &Programmed, scope: &Scope, goal: &Goal<'_>) -> Transition {
    let mut planner = Planner { have, goal, regions: have.regions.clone(), out: Transition::default() };
    let nodes: Vec<_> = scope.nodes.iter().filter_map(|id| Some((*id, planner.node(*id)?))).collect();
    let (opening, mut closing): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|(_, write)| matches!(write, MapOp::SetNode { closed: 0, .. }));
    let concerned = planner.services(scope, opening.iter().map(|(id, _)| *id));
    // Tables without one that was closed already are there, or follow.
    let newly_closed = closing.iter().filter(|(id, _)| !have.nodes.contains_key(&id.0));
    planner.out.stale_nodes = newly_closed.map(|(id, _)| *id).collect();
    let (keep, mut drains) = planner.draining(scope);

    let mut close: Vec<MapOp> = closing.drain(..).map(|(_, write)| write.clone()).collect();
    let (mut serve, mut measure) = (Vec::new(), Vec::new());
    for service in concerned {
        let opens = planner.opens(&service);
        let (mut late, early) = planner.closings(&service, opens);
        close.extend(early);
        measure.extend(planner.measuring(&service));
        if opens {
            late.extend(drains.remove(&service.id).unwrap_or_default());
        } else if goal.at_leisure {
            planner.out.stale.push(service.id);
            continue;
        }
        serve.extend(planner.serve(service, opens, late));
    }
    let steps =
        [Step::Close(close), Step::Keep(keep), Step::Open(opening.into_iter().map(|(_, w)| w.clone()).collect())];
    planner.out.steps.extend(steps);
    planner.out.steps.push(Step::Drain(drains.into_values().flatten().collect()));
    planner.out.steps.extend(serve);
    let removed = planner.remove(scope);
    planner.out.steps.extend([removed, Step::Measure(measure)]);
    planner.out.steps.retain(|step| matches!(step, Step::Serve { .. }) || step.writes().next().is_some());
    planner.out
}

struct Planner<'a> {
    have: &'a Programmed,
    goal: &'a Goal<'a>,
    /// As they will be when the tables planned so far are written.
    regions: Regions,
    out: Transition,
}

impl Planner<'_> {
    /// The write that brings one node to what is desired: one, or none.
    fn node(&self, id: NodeId) -> Option<MapOp> {
        let closed = closed_node(self.goal.after.node_by_id(id)?);
        let held = self.have.nodes.get(&id.0).copied().unwrap_or(0);
        (held != closed).then_some(MapOp::SetNode { node: id.0, closed })
    }

    /// Services whose tables may have to change, each once, as they are after the change.
    fn services(&self, scope: &Scope, opening: impl Iterator<Item = NodeId>) -> Vec<Arc<Service>> {
        let Goal { before, after, .. } = self.goal;
        let changed = scope.services.iter().filter_map(|id| after.service_by_id(*id));
        let changed = changed.filter(|service| {
            let former = before.service_by_id(service.id).filter(|_| self.have.services.contains_key(&service.id.0));
            !former.is_some_and(|former| self.steer_alike(former, service))
        });
        let opened = opening.flat_map(|node| after.node_services(node));
        let mut seen = HashSet::new();
        changed.chain(opened).filter(|service| seen.insert(service.id)).cloned().collect()
    }

    /// Whether both are the same to a caller: a label, a lease or a drain that ends concerns no table.
    fn steer_alike(&self, former: &Service, service: &Service) -> bool {
        let Goal { before, after, ramps_before, ramps, .. } = self.goal;
        let panics = (before.panics(former), after.panics(service));
        let of = |service: &Service| {
            let groups: Vec<u32> = service.groups.iter().map(|group| group.weight).collect();
            (service.name.clone(), service.balance, service.on_no_backend, service.health_policy.turn_time, groups)
        };
        former.backends.len() == service.backends.len()
            && former.frontends == service.frontends
            && of(former) == of(service)
            && former.backends.iter().zip(&service.backends).all(|(was, is)| {
                was.name == is.name
                    && (was.weight, was.group) == (is.weight, is.group)
                    && entry(former, was, panics.0) == entry(service, is, panics.1)
                    && was.id == is.id
                    && ramps_before.part(was) == ramps.part(is)
            })
    }

    /// Whether some backend of the service may take connections after the change that may not now.
    fn opens(&self, service: &Service) -> bool {
        let panic = self.goal.after.panics(service);
        service.backends.iter().any(|backend| {
            let was_open = self.have.backends.get(&backend.id.0).is_some_and(|held| self.is_open(held));
            let is_node_open = self.goal.after.node_by_id(backend.node).is_none_or(|node| closed_node(node) == 0);
            !was_open && is_node_open && closed(service, backend, panic) == 0
        })
    }

    /// Whether a backend takes connections now.
    fn is_open(&self, held: &BackendEntry) -> bool {
        held.closed == 0 && !self.have.nodes.contains_key(&held.node)
    }

    /// Writes that close backends of the service: those that wait for the table in which others open, and the rest.
    fn closings(&self, service: &Service, opens: bool) -> (Vec<MapOp>, Vec<MapOp>) {
        let panic = self.goal.after.panics(service);
        let (mut late, mut early) = (Vec::new(), Vec::new());
        for backend in &service.backends {
            let Some(held) = self.have.backends.get(&backend.id.0) else { continue };
            let closed = closed(service, backend, panic);
            if closed != 0 && held.closed != closed {
                let writes = if opens && self.is_open(held) { &mut late } else { &mut early };
                writes.push(MapOp::CloseBackend { backend: backend.id.0, closed });
            }
        }
        (late, early)
    }

    /// Writes that begin and end the measuring of turn times.
    fn measuring(&self, service: &Service) -> Vec<MapOp> {
        let measured = service.health_policy.turn_time;
        let others = service.backends.iter().filter(|backend| self.have.measured.contains(&backend.id.0) != measured);
        others.map(|backend| MapOp::SetMeasured { backend: backend.id.0, measured }).collect()
    }

    /// Writes after which connections may no longer be closed, and those after which they may, by service.
    fn draining(&self, scope: &Scope) -> (Vec<MapOp>, BTreeMap<ServiceId, Vec<MapOp>>) {
        let Goal { before, after, .. } = self.goal;
        let (mut keep, mut drains): (Vec<_>, BTreeMap<_, Vec<_>>) = (Vec::new(), BTreeMap::new());
        let gone = scope.removed_backends.iter().filter(|id| self.have.draining.contains_key(&id.0));
        keep.extend(gone.map(|id| MapOp::SetDraining { backend: id.0, draining: None }));
        for (service, backend) in draining::concerned(before, after, &scope.services, &scope.nodes) {
            let draining = after.drain(backend).map(|drain| drain.draining(service, backend));
            if self.have.draining.get(&backend.id.0).copied() == draining {
                continue;
            }
            let write = MapOp::SetDraining { backend: backend.id.0, draining };
            match draining {
                None => keep.push(write),
                Some(_) => drains.entry(service.id).or_default().push(write),
            }
        }
        (keep, drains)
    }

    /// The step of one service. `late`: what has to wait for its table, if something opens. Nothing when there is no room
    /// for the first table of a service.
    fn serve(&mut self, service: Arc<Service>, opens: bool, late: Vec<MapOp>) -> Option<Step> {
        let Goal { after, ramps, seed, .. } = *self.goal;
        let id = service.id.0;
        let built = service::build(after, ramps, &service);
        let held = self.have.services.get(&id);
        let fingerprint = service::fingerprint(built.word(&service, 0), &built.entries);
        let is_other = held.is_none_or(|held| held.fingerprint != fingerprint || !held.table.present());
        let region = if is_other { self.regions.take(built.entries.len() as u32) } else { None };
        let has_room = !is_other || region.is_some();
        if !has_room {
            self.out.without_room.push(NoRoom { service: service.id, entries: built.entries.len() });
            held.filter(|held| held.table.present())?;
        }
        let mut writes = Vec::new();
        if held.is_none() {
            writes.push(MapOp::BeginService { service: id, start: mix(seed ^ u64::from(id)) });
        }
        let panic = after.panics(&service);
        for backend in &service.backends {
            let mut value = entry(&service, backend, panic);
            let mut held = self.have.backends.get(&backend.id.0).copied();
            // What closes has a write of its own: after this, or in the first step.
            if let Some(held) = held.as_mut().filter(|_| value.closed != 0) {
                let closed = if opens && self.is_open(held) { 0 } else { value.closed };
                (held.closed, value.closed) = (closed, closed);
            }
            if held != Some(value) {
                writes.push(MapOp::PutBackend { backend: backend.id.0, value });
            }
        }
        if let Some(region) = region {
            if !built.entries.is_empty() {
                writes.push(MapOp::WriteTable { base: region.base, entries: built.entries.clone() });
            }
            writes.push(MapOp::Flip { service: id, table: built.word(&service, region.base), fingerprint });
        }
        let wanted: BTreeSet<Endpoint> = service.frontends.iter().map(endpoint).collect();
        let new = wanted.iter().filter(|frontend| self.have.frontends.get(frontend) != Some(&id));
        writes.extend(new.map(|frontend| MapOp::PutFrontend { frontend: *frontend, service: id }));
        // A frontend that went to another service is that one's to write.
        let gone = held.into_iter().flat_map(|held| held.frontends.difference(&wanted));
        let gone = gone.filter(|frontend| frontend_owner(after, frontend).is_none());
        writes.extend(gone.map(|frontend| MapOp::RemoveFrontend { frontend: *frontend }));
        Some(Step::Serve { service, table: has_room.then_some(built), writes, late })
    }

    /// Ends what left the configuration: nothing leads to it any more, and flows and stale tables find it closed.
    fn remove(&mut self, scope: &Scope) -> Step {
        let mut writes = Vec::new();
        let services = scope.removed_services.iter().filter_map(|id| self.have.services.get(&id.0));
        let frontends: BTreeSet<&Endpoint> = services.flat_map(|held| &held.frontends).chain(&scope.orphans).collect();
        let gone = frontends.into_iter().filter(|frontend| frontend_owner(self.goal.after, frontend).is_none());
        writes.extend(gone.map(|frontend| MapOp::RemoveFrontend { frontend: *frontend }));
        for id in &scope.removed_backends {
            if let Some(held) = self.have.backends.get(&id.0).filter(|held| held.closed & CLOSED_REMOVED == 0) {
                writes.push(MapOp::CloseBackend { backend: id.0, closed: held.closed | CLOSED_REMOVED });
            }
        }
        let nodes = scope.removed_nodes.iter().filter(|id| self.have.nodes.contains_key(&id.0));
        writes.extend(nodes.map(|id| MapOp::SetNode { node: id.0, closed: 0 }));
        self.out.retired = Retired {
            services: scope.removed_services.clone(),
            backends: scope.removed_backends.clone(),
            nodes: scope.removed_nodes.clone(),
            ..Retired::default()
        };
        Step::Remove(writes)
    }
}
