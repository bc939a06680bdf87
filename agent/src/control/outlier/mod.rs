//! Ejections: backends that the kernel's counts find misbehaving are out for a while, then on trial, then back.
//!
//! What was seen and the time go in, [`Action`]s come out. The machine can be rebuilt at any time from what the state
//! holds of ejections and what the kernel holds of streaks; only how often a backend that is back was out is lost then.

mod member;
#[cfg(test)]
mod properties;
mod service;
#[cfg(test)]
mod tests;
mod window;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use crate::model::{BackendId, HealthUpdate, Name, Protocol, Rule, Service, ServiceId, Stamp};
use service::OutlierService;
pub use window::Totals;

/// A moment on the clocks that are needed: stages outlive a restart, streaks are the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub stamp: Stamp,
    /// CLOCK_MONOTONIC, ns.
    pub monotonic: u64,
}

/// How the last connections of a backend ended, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Streaks {
    /// Connects in a row that failed, and SYNs that had to be sent again.
    pub failures: u32,
    /// Established connections in a row that the backend reset before its first byte.
    pub early_resets: u32,
    /// CLOCK_MONOTONIC ns since when nothing was answered; 0 when something was.
    pub unanswered_since: u64,
}

/// What made the kernel speak up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A connect has failed.
    Failure,
    /// An established connection was reset early.
    EarlyReset,
    /// A SYN had to be sent again: nothing has failed yet.
    Unanswered,
}

/// A look at one backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    pub streaks: Streaks,
    pub totals: Totals,
}

/// Streaks at which the kernel speaks up; 0 is never. Without `failures` it says nothing at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub failures: u32,
    pub early_resets: u32,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// To be told to the steering thread.
    Find(HealthUpdate),
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
    /// Streaks begin anew.
    Restart(BackendId),
    Limit(BackendId, Limits),
    /// Open one connection of the agent's own; [`Ejector::tried`] wants to know what came of it.
    Try(BackendId, SocketAddr),
}

/// What came of a connection of the agent's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tried {
    Answered,
    /// With the reason, to stand after "it ".
    Failed(String),
}

/// All services that have rules.
#[derive(Default)]
pub struct Ejector {
    services: BTreeMap<ServiceId, OutlierService>,
    owners: BTreeMap<BackendId, ServiceId>,
    out: Output,
}

/// What a call leaves to be done, and when to call again.
#[derive(Default)]
struct Output {
    actions: Vec<Action>,
    /// By CLOCK_BOOTTIME ns. An entry that means nothing any more is found out when its time has come.
    due: BTreeSet<(u64, Due)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// A window is over.
    Window(ServiceId),
    /// A time out or a trial is over.
    Stage(BackendId),
    /// Nothing was answered for long enough, unless something was by now.
    Unanswered(BackendId),
    /// What was said does not show yet.
    Unheard(BackendId),
}

impl Ejector {
    /// Takes a service as it was published: a new one, a changed one, or with `None` one that is gone.
    pub fn adopt(&mut self, id: ServiceId, service: Option<&Arc<Service>>, now: &Now) {
        let is_tcp = |service: &Service| service.frontends.iter().any(|frontend| frontend.protocol == Protocol::Tcp);
        let rules = service.filter(|service| is_tcp(service)).and_then(|service| service.health_policy.outlier.clone());
        let (Some(service), Some(rules)) = (service, rules) else {
            if let Some(gone) = self.services.remove(&id) {
                for backend in gone.unwatch(&mut self.out) {
                    self.disown(backend, id);
                }
            }
            return;
        };
        let watched =
            self.services.entry(id).or_insert_with(|| OutlierService::new(service, rules.clone(), now, &mut self.out));
        let gone = watched.update(service, rules, now, &mut self.out);
        for backend in gone {
            self.disown(backend, id);
        }
        self.owners.extend(service.backends.iter().map(|backend| (backend.id, id)));
    }

    /// Whether anything is watched.
    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.services.is_empty()
    }

    /// Judges what the kernel signalled.
    pub fn hear(&mut self, backend: BackendId, signal: Signal, streaks: &Streaks, now: &Now) {
        match self.owners.get(&backend).and_then(|id| self.services.get_mut(id)) {
            Some(watched) => watched.judge(backend, Some(signal), streaks, now, &mut self.out),
            // Limits that an agent before this one has set.
            None => self.out.actions.push(Action::Limit(backend, Limits::default())),
        }
    }

    /// What came of [`Action::Try`].
    pub fn tried(&mut self, backend: BackendId, tried: &Tried, now: &Now) {
        if let Some(watched) = self.owners.get(&backend).and_then(|id| self.services.get_mut(id)) {
            watched.tried(backend, tried, now, &mut self.out);
        }
    }

    /// CLOCK_BOOTTIME ns of the next [`Ejector::tick`] that is worth it.
    pub fn next_due(&self) -> Option<u64> {
        self.out.due.first().map(|(at, _)| *at)
    }

    /// Backends that the next [`Ejector::tick`] has to have looked at.
    pub fn wanted(&self, now: &Now) -> Vec<BackendId> {
        let mut wanted = Vec::new();
        for (_, due) in self.out.due.range(..=(now.stamp.ns, Due::Unheard(BackendId(u32::MAX)))) {
            match due {
                Due::Window(id) => wanted.extend(self.services.get(id).into_iter().flat_map(OutlierService::backends)),
                Due::Unanswered(backend) => wanted.push(*backend),
                Due::Stage(_) | Due::Unheard(_) => {}
            }
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted
    }

    /// Does what is due. `looks` are those of [`Ejector::wanted`] at the same moment.
    pub fn tick(&mut self, looks: &BTreeMap<BackendId, Look>, now: &Now) {
        while let Some((at, due)) = self.out.due.first().copied().filter(|(at, _)| *at <= now.stamp.ns) {
            self.out.due.remove(&(at, due));
            let id = match due {
                Due::Window(id) => Some(id),
                Due::Stage(backend) | Due::Unanswered(backend) | Due::Unheard(backend) => {
                    self.owners.get(&backend).copied()
                }
            };
            let Some(watched) = id.and_then(|id| self.services.get_mut(&id)) else { continue };
            match due {
                Due::Window(_) => watched.window(at, looks, now, &mut self.out),
                Due::Stage(backend) => watched.stage_over(backend, at, now, &mut self.out),
                Due::Unanswered(backend) => watched.still_unanswered(backend, at, looks, now, &mut self.out),
                Due::Unheard(backend) => watched.unheard(backend, at, now, &mut self.out),
            }
        }
    }

    /// What is to be done since the last call.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.out.actions)
    }

    fn disown(&mut self, backend: BackendId, id: ServiceId) {
        if self.owners.get(&backend) == Some(&id) {
            self.owners.remove(&backend);
        }
    }
}
