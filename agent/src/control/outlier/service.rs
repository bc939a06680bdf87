//! A service with rules, and its backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Agenda, BackendCounts, OutlierAction, OutlierDue, RecoveryProbe, SignalKind, SignalLimits, Streaks,
    backend::OutlierBackend,
    window::{self, WindowFigures},
};
use crate::model::{BackendId, Name, Outlier, Rule, Service, ServiceId, Stage, Stamp};

pub struct OutlierService {
    id: ServiceId,
    name: Name,
    rules: Arc<Outlier>,
    backends: BTreeMap<BackendId, OutlierBackend>,
    /// Backends that are out or on trial.
    ejected: usize,
    /// How many backends may be out or on trial at once.
    most: usize,
    /// Whether [`OutlierAction::Spared`] has told that no more backends may be out.
    spared: bool,
    /// CLOCK_BOOTTIME ns of the end of the window.
    window_ends: u64,
}

impl OutlierService {
    /// Without backends yet: see [`OutlierService::update`].
    pub fn new(service: &Service, rules: Arc<Outlier>, now: Stamp, agenda: &mut Agenda) -> Self {
        // The first window only takes the counts from which the next one starts.
        agenda.timers.add(now.ns, OutlierDue::Window(service.id));
        Self {
            id: service.id,
            name: service.name.clone(),
            rules,
            backends: BTreeMap::new(),
            ejected: 0,
            most: 0,
            spared: false,
            window_ends: now.ns,
        }
    }

    pub fn backends(&self) -> impl Iterator<Item = BackendId> {
        self.backends.keys().copied()
    }

    /// Takes in a published service; returns the backends that are gone.
    pub fn update(
        &mut self,
        service: &Service,
        rules: Arc<Outlier>,
        now: Stamp,
        agenda: &mut Agenda,
    ) -> Vec<BackendId> {
        self.rules = rules;
        let window_ends = now.after(self.rules.interval.duration()).ns;
        if window_ends < self.window_ends {
            self.window_ends = window_ends;
            agenda.timers.add(window_ends, OutlierDue::Window(self.id));
        }
        let there: BTreeSet<BackendId> = service.backends.iter().map(|backend| backend.id).collect();
        let gone: Vec<_> = self.backends.extract_if(.., |id, _| !there.contains(id)).map(|(id, _)| id).collect();
        for backend in &service.backends {
            let group = service.groups.get(backend.group as usize);
            let takes = backend.weight > 0 && group.is_some_and(|group| group.weight > 0);
            if let Some(known) = self.backends.get_mut(&backend.id) {
                known.takes = takes;
                known.adopt(backend, now, agenda);
            } else {
                self.backends.insert(backend.id, OutlierBackend::new(backend, takes, now, agenda));
            }
        }
        let backends = || self.backends.values();
        self.ejected = backends().filter(|backend| backend.stage().is_some()).count();
        let taking = backends().filter(|backend| backend.takes).count();
        self.most = taking * usize::from(self.rules.max_ejection_percent) / 100;
        self.release_excess(now, agenda);
        self.spared &= self.ejected >= self.most;
        for backend in self.backends.values_mut() {
            backend.limit(&self.rules, agenda);
        }
        gone
    }

    /// Ends the watch over the service; returns its backends.
    pub fn unwatch(self, agenda: &mut Agenda) -> Vec<BackendId> {
        let silent = self.backends().map(|id| OutlierAction::Limit(id, SignalLimits::default()));
        agenda.actions.extend(silent);
        self.backends().collect()
    }

    /// Judges the streaks of a backend; `signal`: what the kernel signalled, if it did.
    pub fn judge(
        &mut self,
        id: BackendId,
        signal: Option<SignalKind>,
        streaks: &Streaks,
        now: Stamp,
        agenda: &mut Agenda,
    ) {
        let Some(backend) = self.backends.get_mut(&id).filter(|backend| backend.takes) else { return };
        let is_on_trial = match backend.stage() {
            None => false,
            Some(Stage::Trial) => true,
            Some(Stage::Out) => return,
        };
        let rules = &self.rules;
        // On trial one is enough if it was signalled: a SYN sent again may belong to a connection that began long
        // before.
        let enough = |limit: u32, kind| limit.min(if is_on_trial && signal == Some(kind) { 1 } else { limit });
        let reached = |streak, limit: u32, kind| limit != 0 && streak >= enough(limit, kind);
        let on_trial = if is_on_trial { "on trial " } else { "" };
        let patience = rules.unanswered.duration();
        let (rule, message) = if reached(streaks.failures, rules.consecutive_failures, SignalKind::Failures) {
            let message = format!("{on_trial}{} failed in a row", counted(streaks.failures, "attempt"));
            (Rule::ConsecutiveFailures, message)
        } else if reached(streaks.early_resets, rules.consecutive_early_resets, SignalKind::EarlyResets) {
            let connections = counted(streaks.early_resets, "connection");
            let message = format!("{on_trial}{connections} in a row reset before the first byte");
            (Rule::ConsecutiveEarlyResets, message)
        } else if let Some(waited) = streaks.unanswered_for.filter(|_| !patience.is_zero()) {
            if waited < patience {
                let at = now.after(patience - waited).ns;
                if backend.unanswered.is_none_or(|held| held > at) {
                    backend.unanswered = Some(at);
                    agenda.timers.add(at, OutlierDue::Unanswered(id));
                }
                return;
            }
            let seconds = waited.as_secs_f64();
            (Rule::Unanswered, format!("{on_trial}no connection was answered for {seconds:.1} s"))
        } else {
            return;
        };
        self.eject(id, rule, message, now, agenda);
    }

    /// Judges a backend whose time to answer is over.
    pub fn still_unanswered(
        &mut self,
        id: BackendId,
        at: u64,
        counts: &BTreeMap<BackendId, BackendCounts>,
        now: Stamp,
        agenda: &mut Agenda,
    ) {
        let Some(backend) = self.backends.get_mut(&id).filter(|backend| backend.unanswered == Some(at)) else { return };
        backend.unanswered = None;
        if let Some(held) = counts.get(&id) {
            self.judge(id, None, &held.streaks, now, agenda);
        }
    }

    /// Ends a window: judges its figures, and the streaks as well, for signals get lost.
    pub fn window(&mut self, at: u64, counts: &BTreeMap<BackendId, BackendCounts>, now: Stamp, agenda: &mut Agenda) {
        if at != self.window_ends {
            return;
        }
        self.window_ends = now.after(self.rules.interval.duration()).ns;
        agenda.timers.add(self.window_ends, OutlierDue::Window(self.id));
        let mut figures = Vec::new();
        for (id, held) in self.backends().filter_map(|id| Some((id, counts.get(&id)?))).collect::<Vec<_>>() {
            self.judge(id, None, &held.streaks, now, agenda);
            let Some(backend) = self.backends.get_mut(&id) else { continue };
            let before = backend.counted.replace(held.totals);
            let totals = before.and_then(|before| held.totals.since(&before));
            if backend.takes && backend.stage() != Some(Stage::Out) {
                figures.extend(totals.map(|totals| WindowFigures { backend: id, totals }));
            }
        }
        for broken in window::broken(&self.rules, &figures) {
            self.eject(broken.backend, broken.rule, broken.message, now, agenda);
        }
    }

    /// Ends a time out or a trial.
    pub fn stage_over(&mut self, id: BackendId, at: u64, now: Stamp, agenda: &mut Agenda) {
        let Some(backend) = self.backends.get_mut(&id).filter(|backend| backend.is_due(at)) else { return };
        match backend.stage() {
            Some(Stage::Out) => backend.begin_probe(agenda),
            Some(Stage::Trial) => self.release(id, now, agenda),
            None => {}
        }
    }

    /// Takes in the result of a recovery probe.
    pub fn probed(&mut self, id: BackendId, probe: &RecoveryProbe, now: Stamp, agenda: &mut Agenda) {
        let Some(backend) = self.backends.get_mut(&id).filter(|backend| backend.is_probed()) else { return };
        match probe {
            RecoveryProbe::Failed(why) => return backend.stay_out(&self.rules, why, now, agenda),
            // Connections that were on their way at the ejection have failed meanwhile.
            RecoveryProbe::Answered => agenda.act(OutlierAction::Restart(id)),
        }
        if self.rules.trial.as_millis() == 0 {
            return self.release(id, now, agenda);
        }
        backend.begin_trial(&self.rules, now, agenda);
        backend.limit(&self.rules, agenda);
    }

    fn eject(&mut self, id: BackendId, rule: Rule, message: String, now: Stamp, agenda: &mut Agenda) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        match backend.stage() {
            Some(Stage::Out) => return,
            Some(Stage::Trial) => {}
            None if self.ejected >= self.most => {
                if !std::mem::replace(&mut self.spared, true) {
                    let (service, backend) = (self.name.clone(), backend.name.clone());
                    agenda.act(OutlierAction::Spared { service, backend, rule, message });
                }
                return;
            }
            None => self.ejected += 1,
        }
        backend.eject(&self.rules, rule, message, now, agenda);
        agenda.act(OutlierAction::Ejected { service: self.name.clone(), rule });
        backend.limit(&self.rules, agenda);
        agenda.act(OutlierAction::Restart(id));
    }

    fn release(&mut self, id: BackendId, now: Stamp, agenda: &mut Agenda) {
        let Some(backend) = self.backends.get_mut(&id) else { return };
        backend.end(now, agenda);
        backend.limit(&self.rules, agenda);
        self.ejected = self.ejected.saturating_sub(1);
        self.spared = false;
    }

    /// Ends ejections early, those first that would end first, while more backends are out than may be: backends have
    /// left, or the document allows fewer.
    fn release_excess(&mut self, now: Stamp, agenda: &mut Agenda) {
        while self.ejected > self.most {
            let ejected = self.backends.values().filter(|backend| backend.stage().is_some());
            let Some(id) =
                ejected.min_by_key(|backend| (backend.stage() == Some(Stage::Out), backend.ends())).map(|m| m.id)
            else {
                return;
            };
            agenda.act(OutlierAction::Restart(id));
            self.release(id, now, agenda);
        }
    }
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
