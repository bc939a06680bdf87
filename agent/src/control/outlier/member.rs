//! One backend of a service with rules: where it stands, and what of that the steering thread has shown to know.

use std::{net::SocketAddr, time::Duration};

use super::{Action, Due, Limits, Now, Output, Totals};
use crate::model::{Backend, BackendId, Ejection, HealthReport, HealthUpdate, Name, Outlier, Rule, Stage};

/// Time after which something that was said and does not show is said again: it could not be saved.
const UNHEARD: Duration = Duration::from_secs(5);
/// Separates the figures that broke a rule from what came of trying again.
const TRIED: &str = "; tried again, ";

pub struct Member {
    pub id: BackendId,
    pub name: Name,
    pub address: SocketAddr,
    /// Whether it has a weight.
    pub takes: bool,
    ejection: Option<Ejection>,
    /// CLOCK_BOOTTIME ns of the end of the stage; none while a try is on its way.
    ends: Option<u64>,
    /// How often in a row it was ejected, as of `back`.
    times: u32,
    /// CLOCK_BOOTTIME ns since when it is not ejected.
    back: u64,
    /// CLOCK_BOOTTIME ns at which it has gone unanswered for too long, unless it answers.
    pub unanswered: Option<u64>,
    /// At the end of the last window.
    pub counted: Option<Totals>,
    /// What was published last, and what was said since then, in order.
    shown: Option<Ejection>,
    said: Vec<Option<Ejection>>,
    say_again: Option<u64>,
    limits: Option<Limits>,
}

/// What a publication says of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    Known,
    /// Somebody else has ended or changed its ejection.
    Overruled,
}

impl Member {
    /// As the state has it: an ejection goes on from where it was.
    pub fn new(backend: &Backend, takes: bool, now: &Now, out: &mut Output) -> Self {
        let mut member = Self {
            id: backend.id,
            name: backend.name.clone(),
            address: backend.address,
            takes,
            ejection: None,
            ends: None,
            times: 0,
            back: now.stamp.ns,
            unanswered: None,
            counted: None,
            shown: None,
            said: Vec::new(),
            say_again: None,
            limits: None,
        };
        member.take(published(backend), now, out);
        member
    }

    pub fn stage(&self) -> Option<Stage> {
        self.ejection.as_ref().map(|ejection| ejection.stage)
    }

    /// CLOCK_BOOTTIME ns of the end of the stage it is in; a try on its way is the end.
    pub fn ends(&self) -> u64 {
        self.ends.unwrap_or(0)
    }

    pub fn is_due(&self, at: u64) -> bool {
        self.ends == Some(at)
    }

    /// Whether a try is on its way.
    pub fn is_tried(&self) -> bool {
        self.stage() == Some(Stage::Out) && self.ends.is_none()
    }

    /// Compares what is published with what was said. A publication may be older than that.
    pub fn hear(&mut self, backend: &Backend, now: &Now, out: &mut Output) -> News {
        let published = published(backend);
        if let Some(place) = self.said.iter().position(|said| *said == published) {
            self.said.drain(..=place);
            self.shown = published;
        } else if published != self.shown {
            self.times = 0;
            self.take(published, now, out);
            return News::Overruled;
        }
        News::Known
    }

    fn take(&mut self, published: Option<Ejection>, now: &Now, out: &mut Output) {
        self.said.clear();
        self.shown.clone_from(&published);
        self.times = published.as_ref().map_or(0, |ejection| ejection.times);
        self.stand(published, now, out);
    }

    /// Says again what does not show.
    pub fn unheard(&mut self, at: u64, now: &Now, out: &mut Output) {
        if self.say_again != Some(at) {
            return;
        }
        self.say_again = None;
        if self.shown == self.ejection {
            // What came in between was one change with it.
            self.said.clear();
        } else {
            self.tell(now, out);
        }
    }

    /// Breaks a rule: out, longer each time.
    pub fn eject(&mut self, rules: &Outlier, rule: Rule, message: String, now: &Now, out: &mut Output) {
        let times = self.times_now(rules, now).saturating_add(1).min(most_times(rules));
        let lasts = rules.base_ejection_time.times(times).min(rules.max_ejection_time);
        self.times = times;
        self.say(Some(Ejection { since: now.stamp, stage: Stage::Out, lasts, times, rule, message }), now, out);
    }

    /// The time out is over; what a try says decides.
    pub fn begin_try(&mut self, out: &mut Output) {
        self.ends = None;
        out.actions.push(Action::Try(self.id, self.address));
    }

    /// A try has failed: out for another base time.
    pub fn stay_out(&mut self, rules: &Outlier, why: &str, now: &Now, out: &mut Output) {
        let Some(ejection) = &self.ejection else { return };
        let cause = ejection.message.split(TRIED).next().unwrap_or_default();
        let message = format!("{cause}{TRIED}it {why}");
        let times = ejection.times.saturating_add(1).min(most_times(rules));
        let lasts = rules.base_ejection_time;
        self.times = times;
        let ejection = Ejection { since: now.stamp, lasts, times, message, ..ejection.clone() };
        self.say(Some(ejection), now, out);
    }

    pub fn begin_trial(&mut self, rules: &Outlier, now: &Now, out: &mut Output) {
        let Some(ejection) = &self.ejection else { return };
        let cause = ejection.message.split(TRIED).next().unwrap_or_default();
        let message = format!("{cause}{TRIED}it answered");
        let trial = Ejection { since: now.stamp, stage: Stage::Trial, lasts: rules.trial, message, ..ejection.clone() };
        self.say(Some(trial), now, out);
    }

    pub fn end(&mut self, now: &Now, out: &mut Output) {
        self.back = now.stamp.ns;
        self.say(None, now, out);
    }

    /// Sets when the kernel speaks up of it.
    pub fn limit(&mut self, rules: &Outlier, out: &mut Output) {
        let limits = match self.stage() {
            _ if !self.takes => Limits::default(),
            None => limits(rules, rules.consecutive_failures, rules.consecutive_early_resets),
            // What still comes is of connections that were on their way.
            Some(Stage::Out) => Limits::default(),
            Some(Stage::Trial) => {
                limits(rules, rules.consecutive_failures.min(1), rules.consecutive_early_resets.min(1))
            }
        };
        if self.limits != Some(limits) {
            self.limits = Some(limits);
            out.actions.push(Action::Limit(self.id, limits));
        }
    }

    /// How often it was ejected in a row, less one for each longest time out that it was back since.
    fn times_now(&self, rules: &Outlier, now: &Now) -> u32 {
        if self.ejection.is_some() {
            return self.times;
        }
        let back = u128::from(now.stamp.ns.saturating_sub(self.back));
        let steps = back / rules.max_ejection_time.duration().as_nanos().max(1);
        self.times.saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }

    fn say(&mut self, ejection: Option<Ejection>, now: &Now, out: &mut Output) {
        self.stand(ejection, now, out);
        self.tell(now, out);
    }

    fn stand(&mut self, ejection: Option<Ejection>, now: &Now, out: &mut Output) {
        self.unanswered = None;
        self.ends = ejection.as_ref().map(|stage| after(now, stage.since.left(stage.lasts.duration(), &now.stamp)));
        out.due.extend(self.ends.map(|at| (at, Due::Stage(self.id))));
        self.ejection = ejection;
    }

    fn tell(&mut self, now: &Now, out: &mut Output) {
        self.said.push(self.ejection.clone());
        let at = after(now, UNHEARD);
        self.say_again = Some(at);
        out.due.insert((at, Due::Unheard(self.id)));
        out.actions.push(Action::Find(HealthUpdate {
            backend: self.id,
            report: HealthReport::Ejection(self.ejection.clone()),
        }));
    }
}

/// CLOCK_BOOTTIME ns.
pub fn after(now: &Now, by: Duration) -> u64 {
    now.stamp.after(by).ns
}

/// From so many times on the time out does not grow.
pub fn most_times(rules: &Outlier) -> u32 {
    rules.max_ejection_time.as_millis().div_ceil(rules.base_ejection_time.as_millis().max(1)).max(1)
}

fn published(backend: &Backend) -> Option<Ejection> {
    backend.health.as_ref().and_then(|health| health.ejection.clone())
}

fn limits(rules: &Outlier, failures: u32, early_resets: u32) -> Limits {
    let is_silent = failures == 0 && early_resets == 0 && rules.unanswered.as_millis() == 0;
    // Without a limit the kernel would keep quiet of the others too.
    let failures = if failures == 0 && !is_silent { u32::MAX } else { failures };
    Limits { failures, early_resets }
}
