//! One backend of a service with rules: its ejection, and what follows from it.

use std::net::SocketAddr;

use super::{Agenda, OutlierAction, OutlierDue, SignalLimits, Totals};
use crate::{
    control::announced::Announced,
    model::{Backend, BackendId, Ejection, HealthReport, HealthUpdate, Name, Outlier, Rule, Stage, Stamp},
};

/// Separates the figures that broke a rule from the result of a recovery probe.
const TRIED: &str = "; tried again, ";

pub struct OutlierBackend {
    pub id: BackendId,
    pub name: Name,
    pub address: SocketAddr,
    /// Whether it has a weight.
    pub takes: bool,
    ejection: Announced<Option<Ejection>>,
    /// CLOCK_BOOTTIME ns of the end of the stage; `None`: a recovery probe is under way.
    ends: Option<u64>,
    /// How often in a row it was ejected, as of `back`.
    times: u32,
    /// CLOCK_BOOTTIME ns since when it is not ejected.
    back: u64,
    /// CLOCK_BOOTTIME ns at which the backend will have gone unanswered for too long.
    pub unanswered: Option<u64>,
    /// Counts at the end of the last window.
    pub counted: Option<Totals>,
    limits: Option<SignalLimits>,
}

impl OutlierBackend {
    /// Goes on from the ejection in the state, if there is one.
    pub fn new(backend: &Backend, takes: bool, now: Stamp, agenda: &mut Agenda) -> Self {
        let mut new = Self {
            id: backend.id,
            name: backend.name.clone(),
            address: backend.address,
            takes,
            ejection: Announced::new(published(backend)),
            ends: None,
            times: 0,
            back: now.ns,
            unanswered: None,
            counted: None,
            limits: None,
        };
        new.go_on(now, agenda);
        new
    }

    pub fn stage(&self) -> Option<Stage> {
        self.ejection.current().as_ref().map(|ejection| ejection.stage)
    }

    /// CLOCK_BOOTTIME ns of the end of the stage; 0 while a recovery probe is under way.
    pub fn ends(&self) -> u64 {
        self.ends.unwrap_or(0)
    }

    pub fn is_due(&self, at: u64) -> bool {
        self.ends == Some(at)
    }

    /// Whether a recovery probe is under way.
    pub fn is_probed(&self) -> bool {
        self.stage() == Some(Stage::Out) && self.ends.is_none()
    }

    /// Takes over a published ejection that somebody else has set or ended, and restarts the streaks.
    pub fn adopt(&mut self, backend: &Backend, now: Stamp, agenda: &mut Agenda) {
        if self.ejection.is_overruled(published(backend)) {
            self.go_on(now, agenda);
            agenda.act(OutlierAction::Restart(self.id));
        }
    }

    /// Ejects the backend for breaking a rule, longer each time.
    pub fn eject(&mut self, rules: &Outlier, rule: Rule, message: String, now: Stamp, agenda: &mut Agenda) {
        let times = self.times_now(rules, now).saturating_add(1).min(most_times(rules));
        let lasts = rules.base_ejection_time.times(times).min(rules.max_ejection_time);
        self.times = times;
        self.announce(Some(Ejection { since: now, stage: Stage::Out, lasts, times, rule, message }), now, agenda);
    }

    /// Ends the time out: a recovery probe decides what follows.
    pub fn begin_probe(&mut self, agenda: &mut Agenda) {
        self.ends = None;
        agenda.act(OutlierAction::Probe(self.id, self.address));
    }

    /// Keeps the backend out for another base time: the recovery probe failed.
    pub fn stay_out(&mut self, rules: &Outlier, why: &str, now: Stamp, agenda: &mut Agenda) {
        let Some(ejection) = self.ejection.current() else { return };
        let times = ejection.times.saturating_add(1).min(most_times(rules));
        let lasts = rules.base_ejection_time;
        let ejection = Ejection { since: now, lasts, times, message: tried(ejection, why), ..ejection.clone() };
        self.times = times;
        self.announce(Some(ejection), now, agenda);
    }

    pub fn begin_trial(&mut self, rules: &Outlier, now: Stamp, agenda: &mut Agenda) {
        let Some(ejection) = self.ejection.current() else { return };
        let (lasts, message) = (rules.trial, tried(ejection, "answered"));
        let trial = Ejection { since: now, stage: Stage::Trial, lasts, message, ..ejection.clone() };
        self.announce(Some(trial), now, agenda);
    }

    pub fn end(&mut self, now: Stamp, agenda: &mut Agenda) {
        self.back = now.ns;
        self.announce(None, now, agenda);
    }

    /// Sets the streaks at which the kernel signals.
    pub fn limit(&mut self, rules: &Outlier, agenda: &mut Agenda) {
        let limits = match self.stage() {
            _ if !self.takes => SignalLimits::default(),
            None => limits(rules, rules.consecutive_failures, rules.consecutive_early_resets),
            // Failures of connections that were on their way say nothing new.
            Some(Stage::Out) => SignalLimits::default(),
            Some(Stage::Trial) => {
                limits(rules, rules.consecutive_failures.min(1), rules.consecutive_early_resets.min(1))
            }
        };
        if self.limits != Some(limits) {
            self.limits = Some(limits);
            agenda.act(OutlierAction::Limit(self.id, limits));
        }
    }

    /// How often the backend was ejected in a row, less one for each longest time out that it has been back.
    fn times_now(&self, rules: &Outlier, now: Stamp) -> u32 {
        if self.stage().is_some() {
            return self.times;
        }
        let back = u128::from(now.ns.saturating_sub(self.back));
        let steps = back / rules.max_ejection_time.duration().as_nanos().max(1);
        self.times.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    fn announce(&mut self, ejection: Option<Ejection>, now: Stamp, agenda: &mut Agenda) {
        self.ejection.announce(ejection.clone());
        self.plan_end(now, agenda);
        agenda.act(OutlierAction::Update(HealthUpdate { backend: self.id, report: HealthReport::Ejection(ejection) }));
    }

    /// Goes on from the published ejection.
    fn go_on(&mut self, now: Stamp, agenda: &mut Agenda) {
        self.times = self.ejection.current().as_ref().map_or(0, |ejection| ejection.times);
        self.plan_end(now, agenda);
    }

    fn plan_end(&mut self, now: Stamp, agenda: &mut Agenda) {
        self.unanswered = None;
        let stage = self.ejection.current().as_ref();
        self.ends = stage.map(|stage| now.after(stage.since.left(stage.lasts.duration(), &now)).ns);
        if let Some(at) = self.ends {
            agenda.timers.add(at, OutlierDue::Stage(self.id));
        }
    }
}

/// Number of ejections from which on the time out no longer grows.
fn most_times(rules: &Outlier) -> u32 {
    rules.max_ejection_time.as_millis().div_ceil(rules.base_ejection_time.as_millis().max(1)).max(1)
}

/// The figures that broke the rule, and the result of the recovery probe.
fn tried(ejection: &Ejection, found: &str) -> String {
    let cause = ejection.message.split(TRIED).next().unwrap_or_default();
    format!("{cause}{TRIED}it {found}")
}

fn published(backend: &Backend) -> Option<Ejection> {
    backend.health.as_ref().and_then(|health| health.ejection.clone())
}

fn limits(rules: &Outlier, failures: u32, early_resets: u32) -> SignalLimits {
    let is_silent = failures == 0 && early_resets == 0 && rules.unanswered.as_millis() == 0;
    // A limit of 0 would silence signals of the other kinds too.
    let failures = if failures == 0 && !is_silent { u32::MAX } else { failures };
    SignalLimits { failures, early_resets }
}
