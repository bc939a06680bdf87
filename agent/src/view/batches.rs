//! Counters of many services, a few thousand backends at a time: each reading maps a part of the kernel's table and
//! unmaps it, which costs too much for ten backends alone.

use std::sync::Arc;

use anyhow::Result;
use sluice_common::tables::Counters;

use crate::kernel::readings::Readings;
use crate::model::{BackendId, Service};

/// Backends of one reading, unless a single service has more.
const AT_ONCE: usize = 4096;

/// Hands every service to `act`, with counters in the order of its backends.
///
/// # Errors
/// When the counters cannot be read, or `act` fails.
pub fn each_service<'a>(
    readings: &dyn Readings,
    services: impl Iterator<Item = &'a Arc<Service>>,
    mut act: impl FnMut(&'a Service, &[Counters]) -> Result<()>,
) -> Result<()> {
    let (mut batch, mut backends) = (Vec::new(), 0);
    for service in services {
        if backends + service.backends.len() > AT_ONCE && !batch.is_empty() {
            run(readings, &batch, &mut act)?;
            (batch, backends) = (Vec::new(), 0);
        }
        batch.push(&**service);
        backends += service.backends.len();
    }
    run(readings, &batch, &mut act)
}

fn run<'a>(
    readings: &dyn Readings,
    batch: &[&'a Service],
    act: &mut impl FnMut(&'a Service, &[Counters]) -> Result<()>,
) -> Result<()> {
    let all = batch.iter().flat_map(|service| &service.backends).map(|backend| backend.id);
    let mut wanted: Vec<(BackendId, usize)> = all.zip(0..).collect();
    // In the order of the table: neighbours are read together.
    wanted.sort_unstable();
    let ids: Vec<_> = wanted.iter().map(|(id, _)| *id).collect();
    let mut read: Vec<_> = wanted.iter().map(|(_, place)| *place).zip(readings.counters(&ids)?).collect();
    read.sort_unstable_by_key(|(place, _)| *place);
    let counters: Vec<Counters> = read.into_iter().map(|(_, counters)| counters).collect();
    let mut rest = counters.as_slice();
    for service in batch {
        let (of_service, after) = rest.split_at(service.backends.len().min(rest.len()));
        rest = after;
        act(service, of_service)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Mutex};

    use sluice_common::verdict::{Program, Verdict};

    use super::*;
    use crate::{
        kernel::{gauges::UNUSED, sockets::Census},
        model::{Backend, Balance, Group, NodeId, OnNoBackend, Origin, ServiceId},
    };

    /// Answers with the id, and notes what was asked for.
    #[derive(Default)]
    struct Ids(Mutex<Vec<Vec<u32>>>);

    impl Readings for Ids {
        fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>> {
            self.0.lock().unwrap().push(ids.iter().map(|id| id.0).collect());
            Ok(ids.iter().map(|id| Counters { picked: id.0.into(), ..UNUSED }).collect())
        }
        fn no_backend(&self, _: ServiceId) -> Result<u64> {
            Ok(0)
        }
        fn streaks(&self, ids: &[BackendId]) -> Vec<sluice_common::streak::FailureStreak> {
            vec![Default::default(); ids.len()]
        }
        fn turns(&self, ids: &[BackendId]) -> Vec<sluice_common::streak::Turns> {
            vec![Default::default(); ids.len()]
        }
        fn signals_lost(&self) -> u64 {
            0
        }
        fn verdicts(&self) -> Result<Vec<(Program, Verdict, u64)>> {
            Ok(Vec::new())
        }
        fn pick(&self, _: ServiceId, _: u64) -> Result<Option<BackendId>> {
            Ok(None)
        }
        fn census(&self) -> Result<Census> {
            Ok(Census { rows: Vec::new(), hz: 250 })
        }
        fn flows(&self) -> Result<BTreeMap<BackendId, u64>> {
            Ok(BTreeMap::new())
        }
    }

    fn service(ids: &[u32]) -> Arc<Service> {
        let backend = |id: &u32| Backend {
            id: BackendId(*id),
            name: format!("b{id}").parse().unwrap(),
            address: "10.0.0.1:80".parse().unwrap(),
            node: NodeId(0),
            group: 0,
            weight: 100,
            zero: None,
            own: None,
            health: None,
        };
        Arc::new(Service {
            id: ServiceId(0),
            name: "s".parse().unwrap(),
            labels: BTreeMap::new(),
            generation: 1,
            origin: Origin::Api,
            applied: 0,
            frontends: Vec::new(),
            balance: Balance::Spread,
            on_no_backend: OnNoBackend::Refuse,
            min_ready_percent: 0,
            protocol: Default::default(),
            idle_close: None,
            close_as: Default::default(),
            flow_timeout: None,
            health_policy: Default::default(),
            groups: vec![Group { name: "default".parse().unwrap(), weight: 1 }],
            groups_given: false,
            backends: ids.iter().map(backend).collect(),
        })
    }

    #[test]
    fn every_service_gets_its_own_counters_in_few_sorted_readings() {
        let many: Vec<u32> = (1000..1000 + AT_ONCE as u32).collect();
        let services = [service(&[7, 3]), service(&[]), service(&[5]), service(&many), service(&[1])];
        let (readings, mut found) = (Ids::default(), Vec::new());
        each_service(&readings, services.iter(), |service, counters| {
            let picked: Vec<_> = counters.iter().map(|counters| counters.picked).collect();
            let ids: Vec<_> = service.backends.iter().map(|backend| u64::from(backend.id.0)).collect();
            assert_eq!(picked, ids);
            found.push(ids.len());
            Ok(())
        })
        .unwrap();
        assert_eq!(found, [2, 0, 1, AT_ONCE, 1]);
        assert_eq!(*readings.0.lock().unwrap(), [vec![3, 5, 7], many, vec![1]]);
    }
}
