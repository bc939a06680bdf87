//! Ejections: a backend that misbehaves by the kernel's counts is out for a while, then on trial, then back.
//!
//! The detector can be rebuilt at any time from the ejections in the state and the streaks in the kernel; only how
//! often a backend was ejected before it came back is lost then.

mod backend;
#[cfg(test)]
mod properties;
mod service;
#[cfg(test)]
mod tests;
mod window;

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use super::{StateMachine, timers::Timers};
use crate::model::{BackendId, HealthUpdate, Name, Protocol, Rule, Service, ServiceId, Stamp};
use service::OutlierService;
pub use sluice_common::streak::SignalKind;
pub use window::Totals;

/// How the last connections of a backend ended, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    /// Connects in a row that failed, and SYNs that had to be sent again.
    pub failures: u32,
    /// Established connections in a row that the backend reset before its first byte.
    pub early_resets: u32,
    /// For how long nothing was answered; `None` when something was.
    pub unanswered_for: Option<Duration>,
}

/// What the kernel holds of one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendCounts {
    pub streaks: Streaks,
    pub totals: Totals,
}

/// Streaks at which the kernel signals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SignalLimits {
    /// A signal when so many connects in a row failed, and at every SYN that is sent again; 0: no signals of any kind.
    pub failures: u32,
    /// A signal when so many connections in a row were reset before their first byte; 0: none of this kind.
    pub early_resets: u32,
}

#[derive(Clone, Debug)]
pub enum OutlierEvent<'a> {
    /// A service as it was published: a new one, a changed one, or with `None` one that is gone.
    Published(ServiceId, Option<&'a Arc<Service>>),
    /// The kernel signalled, with the streaks as they stood.
    Signalled(BackendId, SignalKind, Streaks),
    /// What [`OutlierAction::Count`] found, at the same moment. Backends whose counts cannot be read are missing.
    Counted(&'a BTreeMap<BackendId, BackendCounts>),
    /// What came of [`OutlierAction::Probe`].
    Probed(BackendId, &'a RecoveryProbe),
    /// The time of [`StateMachine::poll_timeout`] has come.
    Timeout,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutlierAction {
    /// Read the counts of these backends; [`OutlierEvent::Counted`] has them.
    Count(Vec<BackendId>),
    Update(HealthUpdate),
    /// A rule has put a backend out.
    Ejected {
        service: Name,
        rule: Rule,
    },
    /// A backend breaks a rule and stays: as many as may be are out. Told once until one of them is back.
    Spared {
        service: Name,
        backend: Name,
        rule: Rule,
        message: String,
    },
    /// Begin the backend's streaks anew.
    Restart(BackendId),
    Limit(BackendId, SignalLimits),
    /// Open one connection of the agent's own to a backend whose time out is over; [`OutlierEvent::Probed`] has what came
    /// of it.
    Probe(BackendId, SocketAddr),
}

/// What came of a connection of the agent's own to an ejected backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecoveryProbe {
    Answered,
    /// With the reason, to stand after "it ".
    Failed(String),
}

/// All services that have rules.
#[derive(Default)]
pub struct OutlierDetector {
    services: BTreeMap<ServiceId, OutlierService>,
    owners: BTreeMap<BackendId, ServiceId>,
    agenda: Agenda,
}

/// What is to be done, and what is due later.
#[derive(Default)]
struct Agenda {
    actions: VecDeque<OutlierAction>,
    /// By CLOCK_BOOTTIME ns. Timers are not cancelled; a stale one is ignored when it fires.
    timers: Timers<u64, OutlierDue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum OutlierDue {
    /// A window is over.
    Window(ServiceId),
    /// A time out or a trial is over.
    Stage(BackendId),
    /// Nothing was answered for long enough, unless something was by now.
    Unanswered(BackendId),
}

impl OutlierDetector {
    /// Whether anything is watched.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.services.is_empty()
    }

    fn adopt(&mut self, id: ServiceId, service: Option<&Arc<Service>>, now: Stamp) {
        let is_tcp = |service: &Service| service.frontends.iter().any(|frontend| frontend.protocol == Protocol::Tcp);
        let rules = service.filter(|service| is_tcp(service)).and_then(|service| service.health_policy.outlier.clone());
        let agenda = &mut self.agenda;
        let gone = match (service, rules) {
            (Some(service), Some(rules)) => {
                let watched = self.services.entry(id);
                let watched = watched.or_insert_with(|| OutlierService::new(service, rules.clone(), now, agenda));
                self.owners.extend(service.backends.iter().map(|backend| (backend.id, id)));
                watched.update(service, rules, now, agenda)
            }
            _ => self.services.remove(&id).map(|gone| gone.unwatch(agenda)).unwrap_or_default(),
        };
        for backend in gone {
            if self.owners.get(&backend) == Some(&id) {
                self.owners.remove(&backend);
            }
        }
    }

    /// The service of a backend, and what it has to be told.
    fn owner(&mut self, backend: BackendId) -> Option<(&mut OutlierService, &mut Agenda)> {
        let service = self.services.get_mut(self.owners.get(&backend)?)?;
        Some((service, &mut self.agenda))
    }

    /// Backends whose counts decide about what is due.
    fn wanted(&self, now: Stamp) -> Vec<BackendId> {
        let mut wanted = Vec::new();
        for due in self.agenda.timers.due(now.ns) {
            match due {
                OutlierDue::Window(id) => {
                    wanted.extend(self.services.get(&id).into_iter().flat_map(OutlierService::backends))
                }
                OutlierDue::Unanswered(backend) => wanted.push(backend),
                OutlierDue::Stage(_) => {}
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Does what is due.
    fn tick(&mut self, counts: &BTreeMap<BackendId, BackendCounts>, now: Stamp) {
        while let Some((at, due)) = self.agenda.timers.take_due(now.ns) {
            match due {
                OutlierDue::Window(id) => {
                    if let Some(service) = self.services.get_mut(&id) {
                        service.window(at, counts, now, &mut self.agenda);
                    }
                }
                OutlierDue::Stage(backend) => {
                    if let Some((service, agenda)) = self.owner(backend) {
                        service.stage_over(backend, at, now, agenda);
                    }
                }
                OutlierDue::Unanswered(backend) => {
                    if let Some((service, agenda)) = self.owner(backend) {
                        service.still_unanswered(backend, at, counts, now, agenda);
                    }
                }
            }
        }
    }
}

impl StateMachine for OutlierDetector {
    type Event<'a> = OutlierEvent<'a>;
    type Action = OutlierAction;

    fn handle(&mut self, event: OutlierEvent<'_>, now: Stamp) {
        match event {
            OutlierEvent::Published(id, service) => self.adopt(id, service, now),
            OutlierEvent::Signalled(backend, signal, streaks) => match self.owner(backend) {
                Some((service, agenda)) => service.judge(backend, Some(signal), &streaks, now, agenda),
                // Limits that an agent before this one has set.
                None => self.agenda.act(OutlierAction::Limit(backend, SignalLimits::default())),
            },
            OutlierEvent::Counted(counts) => self.tick(counts, now),
            OutlierEvent::Probed(backend, probe) => {
                if let Some((service, agenda)) = self.owner(backend) {
                    service.probed(backend, probe, now, agenda);
                }
            }
            OutlierEvent::Timeout => match self.wanted(now) {
                wanted if wanted.is_empty() => self.tick(&BTreeMap::new(), now),
                wanted => self.agenda.act(OutlierAction::Count(wanted)),
            },
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        self.agenda.timers.next()
    }

    fn next_action(&mut self) -> Option<OutlierAction> {
        self.agenda.actions.pop_front()
    }
}

impl Agenda {
    fn act(&mut self, action: OutlierAction) {
        self.actions.push_back(action);
    }
}
