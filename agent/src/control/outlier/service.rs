//! A service with rules, and its backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{
    Action, Due, Look, Now, Output, Signal, Streaks, Tried,
    member::{Member, News, after},
    window::{self, Figures},
};
use crate::model::{BackendId, Name, Outlier, Rule, Service, ServiceId, Stage};

pub struct OutlierService {
    id: ServiceId,
    name: Name,
    rules: Arc<Outlier>,
    members: BTreeMap<BackendId, Member>,
    /// Members that are out or on trial.
    ejected: usize,
    /// As many may be.
    most: usize,
    /// That no more may be was told.
    told: bool,
    /// CLOCK_BOOTTIME ns of the end of the window.
    window_ends: u64,
}

impl OutlierService {
    /// Without backends yet: see [`OutlierService::update`].
    pub fn new(service: &Service, rules: Arc<Outlier>, now: &Now, out: &mut Output) -> Self {
        // The first window is only for the counts to begin with.
        out.due.insert((now.stamp.ns, Due::Window(service.id)));
        Self {
            id: service.id,
            name: service.name.clone(),
            rules,
            members: BTreeMap::new(),
            ejected: 0,
            most: 0,
            told: false,
            window_ends: now.stamp.ns,
        }
    }

    pub fn backends(&self) -> impl Iterator<Item = BackendId> {
        self.members.keys().copied()
    }

    /// Takes what is published; returns the backends that are gone.
    pub fn update(&mut self, service: &Service, rules: Arc<Outlier>, now: &Now, out: &mut Output) -> Vec<BackendId> {
        self.rules = rules;
        let window_ends = after(now, self.rules.interval.duration());
        if window_ends < self.window_ends {
            self.window_ends = window_ends;
            out.due.insert((window_ends, Due::Window(self.id)));
        }
        let there: BTreeSet<BackendId> = service.backends.iter().map(|backend| backend.id).collect();
        let gone: Vec<_> = self.backends().filter(|id| !there.contains(id)).collect();
        for id in &gone {
            self.members.remove(id);
        }
        for backend in &service.backends {
            let group = service.groups.get(backend.group as usize);
            let takes = backend.weight > 0 && group.is_some_and(|group| group.weight > 0);
            if let Some(member) = self.members.get_mut(&backend.id) {
                member.takes = takes;
                if member.hear(backend, now, out) == News::Overruled {
                    out.actions.push(Action::Restart(member.id));
                }
            } else {
                self.members.insert(backend.id, Member::new(backend, takes, now, out));
            }
        }
        let members = || self.members.values();
        self.ejected = members().filter(|member| member.stage().is_some()).count();
        self.most =
            members().filter(|member| member.takes).count() * usize::from(self.rules.max_ejection_percent) / 100;
        self.release_excess(now, out);
        self.told &= self.ejected >= self.most;
        for member in self.members.values_mut() {
            member.limit(&self.rules, out);
        }
        gone
    }

    /// Nothing is watched any more; returns the backends.
    pub fn unwatch(self, out: &mut Output) -> Vec<BackendId> {
        out.actions.extend(self.backends().map(|id| Action::Limit(id, super::Limits::default())));
        self.backends().collect()
    }

    /// Judges streaks; `signal` is what the kernel had to say, if it spoke up by itself.
    pub fn judge(&mut self, id: BackendId, signal: Option<Signal>, streaks: &Streaks, now: &Now, out: &mut Output) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.takes) else { return };
        let is_on_trial = match member.stage() {
            None => false,
            Some(Stage::Trial) => true,
            Some(Stage::Out) => return,
        };
        let rules = &self.rules;
        // On trial one is enough; a SYN that had to be sent again may be of a connection that began long before.
        let enough = |limit: u32, kind| limit.min(if is_on_trial && signal == Some(kind) { 1 } else { limit });
        let reached = |streak, limit: u32, kind| limit != 0 && streak >= enough(limit, kind);
        let on_trial = if is_on_trial { "on trial " } else { "" };
        let patience = u64::from(rules.unanswered.as_millis()) * 1_000_000;
        let waited = now.monotonic.saturating_sub(streaks.unanswered_since);
        let broken = if reached(streaks.failures, rules.consecutive_failures, Signal::Failure) {
            let message = format!("{on_trial}{} failed in a row", counted(streaks.failures, "attempt"));
            Some((Rule::ConsecutiveFailures, message))
        } else if reached(streaks.early_resets, rules.consecutive_early_resets, Signal::EarlyReset) {
            let connections = counted(streaks.early_resets, "connection");
            let message = format!("{on_trial}{connections} in a row reset before the first byte");
            Some((Rule::ConsecutiveEarlyResets, message))
        } else if patience != 0 && streaks.unanswered_since != 0 {
            (waited >= patience).then(|| {
                let seconds = waited as f64 / 1e9;
                (Rule::Unanswered, format!("{on_trial}no connection was answered for {seconds:.1} s"))
            })
        } else {
            return;
        };
        match broken {
            Some((rule, message)) => self.eject(id, rule, message, now, out),
            None => {
                let at = after(now, Duration::from_nanos(patience - waited));
                if member.unanswered.is_none_or(|held| held > at) {
                    member.unanswered = Some(at);
                    out.due.insert((at, Due::Unanswered(id)));
                }
            }
        }
    }

    /// The time in which it should have answered something is over.
    pub fn still_unanswered(
        &mut self,
        id: BackendId,
        at: u64,
        looks: &BTreeMap<BackendId, Look>,
        now: &Now,
        out: &mut Output,
    ) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.unanswered == Some(at)) else { return };
        member.unanswered = None;
        if let Some(look) = looks.get(&id) {
            self.judge(id, None, &look.streaks, now, out);
        }
    }

    /// A window is over: judges its figures. Streaks are looked at as well, for signals get lost.
    pub fn window(&mut self, at: u64, looks: &BTreeMap<BackendId, Look>, now: &Now, out: &mut Output) {
        if at != self.window_ends {
            return;
        }
        self.window_ends = after(now, self.rules.interval.duration());
        out.due.insert((self.window_ends, Due::Window(self.id)));
        let mut figures = Vec::new();
        for (id, look) in self.members.keys().filter_map(|id| Some((*id, looks.get(id)?))).collect::<Vec<_>>() {
            self.judge(id, None, &look.streaks, now, out);
            let Some(member) = self.members.get_mut(&id) else { continue };
            let before = member.counted.replace(look.totals);
            let totals = before.and_then(|before| look.totals.since(&before));
            if member.takes && member.stage() != Some(Stage::Out) {
                figures.extend(totals.map(|totals| Figures { backend: id, totals }));
            }
        }
        for broken in window::broken(&self.rules, &figures) {
            self.eject(broken.backend, broken.rule, broken.message, now, out);
        }
    }

    /// A time out or a trial is over.
    pub fn stage_over(&mut self, id: BackendId, at: u64, now: &Now, out: &mut Output) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.is_due(at)) else { return };
        match member.stage() {
            Some(Stage::Out) => member.begin_try(out),
            Some(Stage::Trial) => self.release(id, now, out),
            None => {}
        }
    }

    pub fn tried(&mut self, id: BackendId, tried: &Tried, now: &Now, out: &mut Output) {
        let Some(member) = self.members.get_mut(&id).filter(|member| member.is_tried()) else { return };
        match tried {
            Tried::Failed(why) => return member.stay_out(&self.rules, why, now, out),
            // Those that were on their way when it was put out have failed meanwhile.
            Tried::Answered => out.actions.push(Action::Restart(id)),
        }
        if self.rules.trial.as_millis() == 0 {
            return self.release(id, now, out);
        }
        member.begin_trial(&self.rules, now, out);
        member.limit(&self.rules, out);
    }

    pub fn unheard(&mut self, id: BackendId, at: u64, now: &Now, out: &mut Output) {
        if let Some(member) = self.members.get_mut(&id) {
            member.unheard(at, now, out);
        }
    }

    fn eject(&mut self, id: BackendId, rule: Rule, message: String, now: &Now, out: &mut Output) {
        let Some(member) = self.members.get_mut(&id) else { return };
        match member.stage() {
            Some(Stage::Out) => return,
            Some(Stage::Trial) => {}
            None if self.ejected >= self.most => {
                if !std::mem::replace(&mut self.told, true) {
                    let (service, backend) = (self.name.clone(), member.name.clone());
                    out.actions.push(Action::Spared { service, backend, rule, message });
                }
                return;
            }
            None => self.ejected += 1,
        }
        member.eject(&self.rules, rule, message, now, out);
        out.actions.push(Action::Ejected { service: self.name.clone(), rule });
        member.limit(&self.rules, out);
        out.actions.push(Action::Restart(id));
    }

    fn release(&mut self, id: BackendId, now: &Now, out: &mut Output) {
        let Some(member) = self.members.get_mut(&id) else { return };
        member.end(now, out);
        member.limit(&self.rules, out);
        self.ejected = self.ejected.saturating_sub(1);
        self.told = false;
    }

    /// Backends have left, or the document allows fewer: those that would be back first are.
    fn release_excess(&mut self, now: &Now, out: &mut Output) {
        while self.ejected > self.most {
            let ejected = self.members.values().filter(|member| member.stage().is_some());
            let Some(id) =
                ejected.min_by_key(|member| (member.stage() == Some(Stage::Out), member.ends())).map(|m| m.id)
            else {
                return;
            };
            out.actions.push(Action::Restart(id));
            self.release(id, now, out);
        }
    }
}

fn counted(count: u32, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
