//! Taking in what probes, reports and rules say of backends.

use std::{collections::BTreeMap, sync::Arc};

use super::{Finding, Outcome, Refusal, ServiceId, State, Touched, What};

impl State {
    /// What is said of a backend that is gone, or what is known already, changes nothing.
    pub(super) fn find(&mut self, findings: &[Finding], touched: &mut Touched) -> Result<Outcome, Refusal> {
        let mut of_services: BTreeMap<ServiceId, Vec<&Finding>> = BTreeMap::new();
        for finding in findings {
            if let Some(owner) = self.owners.get(finding.backend.0) {
                of_services.entry(*owner).or_default().push(finding);
            }
        }
        let mut outcome = Outcome::Unchanged;
        for (id, findings) in of_services {
            let Some(old) = self.service_by_id(id).cloned() else { continue };
            let places: BTreeMap<_, _> = (0..).zip(&old.backends).map(|(index, backend)| (backend.id, index)).collect();
            let mut new = (*old).clone();
            let mut changed = false;
            for Finding { backend, what } in findings {
                let Some(place) = places.get(backend).and_then(|index: &usize| new.backends.get_mut(*index)) else {
                    continue;
                };
                // A rule that is gone ejects nobody any more.
                if matches!(what, What::Ejection(Some(_))) && old.watching.outlier.is_none() {
                    continue;
                }
                if let Some(after) = place.finding(what) {
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
