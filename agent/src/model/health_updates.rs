//! Taking in what probes, reports and rules say of backends.

use std::{collections::BTreeMap, sync::Arc};

use super::{HealthReport, HealthUpdate, Outcome, Refusal, ServiceId, State, Touched};

impl State {
    /// What is said of a backend that is gone, or what is known already, changes nothing.
    pub(super) fn update_health(
        &mut self,
        updates: &[HealthUpdate],
        touched: &mut Touched,
    ) -> Result<Outcome, Refusal> {
        let mut of_services: BTreeMap<ServiceId, Vec<&HealthUpdate>> = BTreeMap::new();
        for update in updates {
            if let Some(owner) = self.owners.get(update.backend.0) {
                of_services.entry(*owner).or_default().push(update);
            }
        }
        let mut outcome = Outcome::Unchanged;
        for (id, updates) in of_services {
            let Some(old) = self.service_by_id(id).cloned() else { continue };
            let places: BTreeMap<_, _> = (0..).zip(&old.backends).map(|(index, backend)| (backend.id, index)).collect();
            let mut new = (*old).clone();
            let mut changed = false;
            for HealthUpdate { backend, report } in updates {
                let Some(place) = places.get(backend).and_then(|index: &usize| new.backends.get_mut(*index)) else {
                    continue;
                };
                // A rule that is gone ejects nobody any more.
                if matches!(report, HealthReport::Ejection(Some(_))) && old.health_policy.outlier.is_none() {
                    continue;
                }
                if let Some(after) = place.with_report(report) {
                    *place = after;
                    changed = true;
                }
            }
            if changed {
                self.install(Some(&old), Some(Arc::new(new)), touched)?;
                outcome = Outcome::Replaced;
            }
        }
        Ok(outcome)
    }
}
