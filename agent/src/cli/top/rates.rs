//! Rates between two snapshots of the services. Pure.

use std::{collections::HashMap, time::Instant};

use crate::{
    http::views::ServiceView,
    view::status::{AdminState, BackendStatus},
};

/// The services at one time.
pub struct Snapshot {
    pub at: Instant,
    pub services: Vec<ServiceView>,
}

/// What one frame shows.
#[derive(Debug, PartialEq)]
pub struct TopView {
    pub services: Vec<ServiceRow>,
    pub backends: usize,
    pub totals: Figures,
}

#[derive(Debug, PartialEq)]
pub struct ServiceRow {
    pub name: String,
    pub frontend: String,
    pub figures: Figures,
    pub backends: Vec<BackendRow>,
}

#[derive(Debug, PartialEq)]
pub struct BackendRow {
    pub name: String,
    pub node: String,
    pub state: AdminState,
    pub weight: u32,
    pub desired: f64,
    pub programmed: f64,
    pub observed: Option<f64>,
    pub figures: Figures,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// New connections a second; `None`: there is one snapshot only.
    pub rate: Option<f64>,
    pub active: u64,
    pub failed: u64,
}

impl TopView {
    pub fn new(before: Option<&Snapshot>, now: &Snapshot) -> Self {
        let elapsed = before.map(|before| now.at.duration_since(before.at).as_secs_f64());
        let known: HashMap<(&str, &str), u64> = before
            .iter()
            .flat_map(|before| &before.services)
            .flat_map(|service| {
                service.status.backends.iter().map(|backend| (names(service, backend), backend.new_connections))
            })
            .collect();
        let rate = |service: &ServiceView, backend: &BackendStatus| {
            let elapsed = elapsed.filter(|elapsed| *elapsed > 0.0)?;
            // One that is new, or begins anew at another address, has no rate yet.
            let earlier = known.get(&names(service, backend))?;
            Some(backend.new_connections.checked_sub(*earlier)? as f64 / elapsed)
        };
        let services: Vec<_> = now
            .services
            .iter()
            .map(|service| {
                let backends: Vec<_> = service
                    .status
                    .backends
                    .iter()
                    .enumerate()
                    .map(|(index, backend)| BackendRow {
                        name: backend.name.to_string(),
                        node: service
                            .spec
                            .backends
                            .get(index)
                            .and_then(|b| b.node.as_ref())
                            .map_or_else(String::new, ToString::to_string),
                        state: backend.state,
                        weight: backend.weight,
                        desired: backend.desired_share,
                        programmed: backend.programmed_share,
                        observed: backend.observed_share,
                        figures: Figures {
                            rate: rate(service, backend),
                            active: backend.active_connections,
                            failed: backend.connect_failures,
                        },
                    })
                    .collect();
                let mut figures = sum(backends.iter().map(|backend| backend.figures));
                figures.failed += service.status.no_backend;
                ServiceRow {
                    name: service.metadata.name.to_string(),
                    frontend: service.spec.frontends.first().map_or_else(String::new, ToString::to_string),
                    figures,
                    backends,
                }
            })
            .collect();
        Self {
            backends: services.iter().map(|service| service.backends.len()).sum(),
            totals: sum(services.iter().map(|service| service.figures)),
            services,
        }
    }
}

fn names<'a>(service: &'a ServiceView, backend: &'a BackendStatus) -> (&'a str, &'a str) {
    (service.metadata.name.as_str(), backend.name.as_str())
}

fn sum(figures: impl Iterator<Item = Figures>) -> Figures {
    figures.fold(Figures::default(), |sum, one| Figures {
        rate: match (sum.rate, one.rate) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        },
        active: sum.active + one.active,
        failed: sum.failed + one.failed,
    })
}

#[cfg(test)]
pub mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;

    /// A service with one backend that has had so many connections.
    pub fn snapshot(at: Instant, backend: &str, new: u64) -> Snapshot {
        let backend_status: Value = json!({
            "name": backend, "state": "ready", "weight": 5, "effectiveWeight": 5, "desiredShare": 0.05, "programmedShare": 0.05,
            "observedShare": 0.1, "confidence95": [0.0, 1.0], "connecting": 0, "activeConnections": 3, "newConnections": new,
            "connectFailures": 1,
        });
        let service = json!({
            "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "shop"},
            "spec": {"frontends": ["10.96.0.10:80"], "backends": [{"name": backend, "address": "10.0.0.1:80", "node": "node-1"}]},
            "status": {
                "generation": 1, "observedGeneration": 1, "shareError": 0.0, "slots": 1, "activeConnections": 3,
                "newConnections": new, "connectFailures": 1, "noBackend": 2, "groups": [], "backends": [backend_status],
            },
        });
        Snapshot { at, services: vec![serde_json::from_value(service).unwrap()] }
    }

    #[test]
    fn rates_are_of_the_time_between_two_looks() {
        let start = Instant::now();
        let (first, second) = (snapshot(start, "n1", 100), snapshot(start + Duration::from_secs(2), "n1", 150));
        assert_eq!(TopView::new(None, &first).totals.rate, None);
        let view = TopView::new(Some(&first), &second);
        assert_eq!(view.totals, Figures { rate: Some(25.0), active: 3, failed: 3 });
        assert_eq!(view.services[0].backends[0].figures, Figures { rate: Some(25.0), active: 3, failed: 1 });
        assert_eq!((view.backends, view.services[0].backends[0].node.as_str()), (1, "node-1"));
    }

    #[test]
    fn what_begins_anew_has_no_rate() {
        let start = Instant::now();
        let first = snapshot(start, "n1", 100);
        for (backend, new) in [("n2", 5), ("n1", 5)] {
            let view = TopView::new(Some(&first), &snapshot(start + Duration::from_secs(1), backend, new));
            assert_eq!(view.totals.rate, None, "{backend}");
        }
    }
}
