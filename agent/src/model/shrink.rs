//! The brake on what documents ask for: how much less there would be.

use std::collections::BTreeSet;

use super::{Name, Refusal, Service, State, Touched, document::DocumentKey, words::plural};

/// What is there before a change and would not be after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shrink {
    services: Loss,
    backends: Loss,
    /// Services that go, or lose backends.
    pub losers: BTreeSet<Name>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Loss {
    lost: usize,
    before: usize,
    after: usize,
}

impl Loss {
    /// The last one counts, however few there are; one of several does not.
    fn exceeds(self, percent: u8) -> bool {
        let Self { lost, before, after } = self;
        percent < 100 && (lost > 1 && lost * 100 > before * usize::from(percent) || lost > 0 && after == 0)
    }
}

impl Shrink {
    /// Of a change that `touched` tells of. A service that is replaced by one of another name is lost; a backend that is
    /// replaced within its service is not.
    pub fn of(before: &State, after: &State, touched: &Touched) -> Self {
        let changed = touched.services.iter().filter_map(|id| before.service_by_id(*id));
        let removed = touched.removed_services.iter().filter_map(|(id, _)| before.service_by_id(*id));
        let (mut losers, mut services, mut backends) = (BTreeSet::new(), 0, 0);
        let mut seen = BTreeSet::new();
        for service in changed.chain(removed).filter(|service| seen.insert(service.id)) {
            let now = after.service(service.name.as_str());
            let lost = service.backends.len().saturating_sub(now.map_or(0, |now| now.backends.len()));
            services += usize::from(now.is_none());
            backends += lost;
            if now.is_none() || lost > 0 {
                losers.insert(service.name.clone());
            }
        }
        if losers.is_empty() {
            return Self::default();
        }
        let loss = |lost, count: fn(&State) -> usize| Loss { lost, before: count(before), after: count(after) };
        Self { services: loss(services, State::service_count), backends: loss(backends, State::backend_count), losers }
    }

    /// Whether more than this share of the services or of the backends goes, or the last of them.
    pub fn exceeds(&self, percent: u8) -> bool {
        self.services.exceeds(percent) || self.backends.exceeds(percent)
    }

    /// The documents that wait.
    pub fn documents(&self) -> impl Iterator<Item = DocumentKey> {
        self.losers.iter().cloned().map(DocumentKey::Service)
    }

    /// Of documents that somebody applies.
    pub fn refusal(&self, percent: u8) -> Refusal {
        let message = format!(
            "more than {percent} % would go at once: {}. If that is meant, apply them with --accept-shrink \
             (?acceptShrink=true)",
            self.sentence()
        );
        Refusal::conflict(message, self.losers.iter().cloned().collect())
    }

    /// What goes, in words.
    pub fn sentence(&self) -> String {
        const NAMED: usize = 5;
        let Self { services, backends, losers } = self;
        let named: Vec<_> = losers.iter().take(NAMED).map(Name::as_str).collect();
        let more = losers.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!(
            "{} of {} and {} of {} ({}{more})",
            services.lost,
            plural(services.before as u64, "service"),
            backends.lost,
            plural(backends.before as u64, "backend"),
            named.join(", ")
        )
    }
}

impl State {
    /// Backends of all services.
    pub fn backends(&self) -> impl Iterator<Item = (&Service, &super::Backend)> {
        self.services().flat_map(|service| service.backends.iter().map(move |backend| (&**service, backend)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_several_may_go_and_the_last_may_not() {
        for (lost, before, after, exceeds) in
            [(0, 0, 0, false), (0, 9, 9, false), (1, 2, 1, false), (1, 1, 0, true), (1, 1, 1, false)]
        {
            assert_eq!(Loss { lost, before, after }.exceeds(30), exceeds, "{lost} of {before}");
        }
        for (lost, before, exceeds) in [(3, 10, false), (4, 10, true), (2, 3, true), (30, 100, false), (31, 100, true)]
        {
            assert_eq!(Loss { lost, before, after: before - lost }.exceeds(30), exceeds, "{lost} of {before}");
        }
        assert!(!Loss { lost: 9, before: 9, after: 0 }.exceeds(100), "no limit");
    }
}
