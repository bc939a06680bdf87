//! Fills in the status of services, backends and nodes from a published state and the kernel's counters.

use anyhow::Result;
use jiff::Timestamp;
use sluice_common::tables::Counters;

use super::{
    health::{HealthStatus, WarmingStatus},
    proof::{Picks, ZeroStatus},
    share::{Observed, WindowPicks},
    status::{AdminState, BackendStatus, GroupStatus, NodeStatus, OriginStatus, ServiceStatus},
};
use crate::{
    control::warmup::WHOLE,
    host::clock,
    kernel::{gauges::Gauges, readings::Readings},
    model::{Backend, BackendId, Node, NodeId, Origin, Service, Target, document::DocumentKey},
    view::published::{ProgrammedBackend, ProgrammedService, Published},
};

/// Reports on one published state.
#[derive(Clone, Copy)]
pub struct Reporter<'a> {
    pub published: &'a Published,
    pub readings: &'a dyn Readings,
}

impl Reporter<'_> {
    /// # Errors
    /// When the counters cannot be read.
    pub fn service(&self, service: &Service) -> Result<ServiceStatus> {
        let ids: Vec<_> = service.backends.iter().map(|backend| backend.id).collect();
        self.service_from(service, &self.readings.counters(&ids)?)
    }

    /// As [`Reporter::service`], with counters that were read already, in the order of the service's backends.
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn service_from(&self, service: &Service, counters: &[Counters]) -> Result<ServiceStatus> {
        let no_backend = self.readings.no_backend(service.id)?;
        let table = self.published.programmed.get(&service.id).map(AsRef::as_ref);
        let mut rows: Vec<_> = (0..)
            .zip(&service.backends)
            .zip(counters)
            .map(|((index, backend), counters)| {
                let (programmed, picks) = (find(table, index, backend.id), WindowPicks::default());
                Row { backend, counters, programmed, picks }
            })
            .collect();
        let picks = WindowPicks::of(rows.iter().filter_map(|row| Some((row.programmed?, row.counters.picked))));
        let total = WindowPicks::total(&picks);
        for (row, picks) in rows.iter_mut().filter(|row| row.programmed.is_some()).zip(picks) {
            row.picks = picks;
        }
        let backends = rows.iter().map(|row| self.backend_row(service, row, total)).collect::<Result<Vec<_>>>()?;
        let sum = |figure: fn(&BackendStatus) -> u64| backends.iter().map(figure).sum();
        Ok(ServiceStatus {
            generation: service.generation,
            origin: self.origin(service),
            observed_generation: table.map_or(0, |table| table.generation),
            programmed_at: table.map(|table| table.since),
            share_error: table.map_or(0.0, |table| table.share_error),
            slots: table.map_or(0, |table| table.length),
            active_connections: sum(|backend| backend.active_connections),
            new_connections: sum(|backend| backend.new_connections),
            connect_failures: sum(|backend| backend.connect_failures),
            no_backend,
            unhealthy: service.backends.iter().filter(|b| !b.is_healthy()).count() as u32,
            panic: self.published.state.panics(service),
            groups: groups(service, table, &rows, total),
            backends,
        })
    }

    fn origin(&self, service: &Service) -> OriginStatus {
        let Origin::File(file) = &service.origin else { return OriginStatus::default() };
        let key = DocumentKey::Service(service.name.clone());
        let problems = &self.published.problems;
        let problem = problems.get(&(file.clone(), Some(key))).or_else(|| problems.get(&(file.clone(), None)));
        let file = Some(file.display().to_string());
        OriginStatus { file, edited: service.is_edited(), problem: problem.cloned() }
    }

    /// One backend of [`Reporter::service`].
    ///
    /// # Errors
    /// When the counters cannot be read.
    pub fn backend(&self, service: &Service, backend: &Backend) -> Result<Option<BackendStatus>> {
        Ok(self.service(service)?.backends.into_iter().find(|status| status.name == backend.name))
    }

    /// # Errors
    /// When the counters cannot be read.
    pub fn node(&self, node: &Node) -> Result<NodeStatus> {
        let (ids, counters) = self.node_counters(node.id)?;
        let picks: Picks = counters.iter().collect();
        let gauges = counters.iter().map(Gauges::of);
        let sum = |figure: fn(Gauges) -> u64| gauges.clone().map(figure).sum();
        let target = Target::Node(node.name.clone());
        let counted = ids.into_iter().zip(&counters);
        let zero = node
            .zero
            .as_ref()
            .map(|zero| ZeroStatus::new(&target, zero, self.proof(&target), &self.published.missing, counted));
        Ok(NodeStatus {
            generation: node.generation,
            state: AdminState::of(node.zero.as_deref()),
            declared: node.declared,
            services: self.published.state.node_services(node.id).count(),
            backends: counters.len(),
            unhealthy: self.published.state.node_backends(node.id).filter(|(_, b)| !b.is_healthy()).count(),
            connecting: sum(|gauges| gauges.connecting),
            active_connections: sum(|gauges| gauges.active),
            new_connections: picks.picked,
            connect_failures: sum(|gauges| gauges.failed),
            last_new_connection_at: wall(picks.last),
            zero,
        })
    }

    fn backend_row(&self, service: &Service, row: &Row<'_>, total: f64) -> Result<BackendStatus> {
        let Row { backend, counters, programmed, picks } = row;
        let gauges = Gauges::of(counters);
        let observed = Observed::of(picks.made, total);
        let zero = self.backend_zero(service, backend, counters);
        Ok(BackendStatus {
            name: backend.name.clone(),
            state: self.backend_state(backend),
            health: HealthStatus::of(backend),
            warming: WarmingStatus::of(&self.published.ramps, service, backend),
            weight: backend.weight,
            effective_weight: programmed.map_or(0, |programmed| programmed.effective_weight),
            desired_share: programmed.map_or(0.0, |programmed| programmed.desired_share),
            programmed_share: programmed.map_or(0.0, |programmed| programmed.programmed_share),
            observed_share: observed.share,
            expected_share: programmed.and_then(|_| picks.expected_share(total)),
            confidence95: observed.confidence95,
            connecting: gauges.connecting,
            active_connections: gauges.active,
            new_connections: counters.picked,
            connect_failures: gauges.failed,
            last_new_connection_at: wall(counters.last_pick),
            zero,
        })
    }

    /// The backend's own zero, or its node's.
    fn backend_zero(&self, service: &Service, backend: &Backend, counters: &Counters) -> Option<ZeroStatus> {
        let (target, zero) = if let Some(zero) = &backend.zero {
            (Target::Backend { service: service.name.clone(), backend: backend.name.clone() }, &**zero)
        } else if let Some((node, zero)) = self.node_zero(backend.node) {
            (Target::Node(node.name.clone()), zero)
        } else {
            return None;
        };
        let status =
            ZeroStatus::new(&target, zero, self.proof(&target), &self.published.missing, [(backend.id, counters)]);
        // A drain of the node empties also a backend that has a zero of its own.
        let lasting = self.published.state.drain(backend).map(|drain| drain.operation.clone());
        Some(ZeroStatus { drain: lasting.or(status.drain), ..status })
    }

    fn backend_state(&self, backend: &Backend) -> AdminState {
        if self.published.state.drain(backend).is_some() {
            return AdminState::Draining;
        }
        match AdminState::of(backend.zero.as_deref().or(self.node_zero(backend.node).map(|(_, zero)| zero))) {
            AdminState::Ready if !backend.is_healthy() => AdminState::Unhealthy,
            AdminState::Ready if self.published.ramps.part(backend) < WHOLE => AdminState::Warming,
            state => state,
        }
    }

    fn node_zero(&self, node: NodeId) -> Option<(&Node, &crate::model::Zero)> {
        let node = self.published.state.node_by_id(node)?;
        Some((node, node.zero.as_deref()?))
    }

    fn node_counters(&self, node: NodeId) -> Result<(Vec<BackendId>, Vec<Counters>)> {
        let mut ids: Vec<_> = self.published.state.node_backends(node).map(|(_, backend)| backend.id).collect();
        ids.sort_unstable();
        let counters = self.readings.counters(&ids)?;
        Ok((ids, counters))
    }

    fn proof(&self, target: &Target) -> Option<&crate::view::published::ZeroProof> {
        self.published.zeros.get(target).map(AsRef::as_ref)
    }
}

/// A backend with what is known of it.
struct Row<'a> {
    backend: &'a Backend,
    counters: &'a Counters,
    /// Absent while the kernel's table was built without it.
    programmed: Option<&'a ProgrammedBackend>,
    /// Times it was chosen within the window of observed shares.
    picks: WindowPicks,
}

/// The programmed backend with this id: at the same place, unless the document changed since.
fn find(table: Option<&ProgrammedService>, index: usize, id: BackendId) -> Option<&ProgrammedBackend> {
    let backends = &table?.backends;
    match backends.get(index) {
        Some(programmed) if programmed.id == id => Some(programmed),
        _ => backends.iter().find(|programmed| programmed.id == id),
    }
}

fn groups(service: &Service, table: Option<&ProgrammedService>, rows: &[Row<'_>], total: f64) -> Vec<GroupStatus> {
    let mut groups: Vec<_> = (0_u32..)
        .zip(&service.groups)
        .map(|(index, group)| {
            let spilled = table.is_some_and(|table| table.spilled.contains(&index));
            let status = GroupStatus {
                name: group.name.clone(),
                weight: group.weight,
                desired_share: 0.0,
                programmed_share: 0.0,
                observed_share: None,
                spilled,
            };
            (status, 0.0)
        })
        .collect();
    for row in rows {
        let Some((group, picks)) = groups.get_mut(row.backend.group as usize) else { continue };
        group.desired_share += row.programmed.map_or(0.0, |programmed| programmed.desired_share);
        group.programmed_share += row.programmed.map_or(0.0, |programmed| programmed.programmed_share);
        *picks += row.picks.made;
    }
    let observed = |(status, picks)| GroupStatus { observed_share: Observed::of(picks, total).share, ..status };
    groups.into_iter().map(observed).collect()
}

/// Wall-clock time of the kernel's stamps; 0 is never.
fn wall(monotonic: u64) -> Option<Timestamp> {
    (monotonic != 0).then(|| clock::wall(monotonic))
}
