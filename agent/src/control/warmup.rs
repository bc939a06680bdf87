//! Warm-up: a backend has a part of its weight for some time after it begins to take connections.
//!
//! Parts count within a group, whose share stays what it is. Backends of a group that begin together are equal while
//! all of them are cold; one that comes later gets its part of what the older ones have. (Envoy's slow start is known
//! to send a group's whole share to the one warm endpoint, and to do nothing when all are cold.)

use std::{collections::VecDeque, time::Duration};

use imbl::OrdMap;

use super::{StateMachine, timers::Timers};
use crate::model::{Backend, BackendId, Curve, NodeId, Service, Stamp, State, Touched, Warmup, WarmupStart, health};

/// The whole weight, in thousandths.
pub const WHOLE: u32 = 1000;
/// Parts grow in steps of this many thousandths: each step means a new table.
const STEP: u32 = 20;

impl Warmup {
    /// Part of the weight when `elapsed` has passed since the start, in thousandths: the curve in steps, and at least
    /// the minimum.
    pub fn part(&self, elapsed: Duration) -> u32 {
        // Searches with `reaches`, so that both agree on the time of each step.
        let (mut low, mut high) = (0, WHOLE / STEP);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if self.reaches(middle * STEP) <= elapsed {
                low = middle;
            } else {
                high = middle - 1;
            }
        }
        (low * STEP).max(self.minimum())
    }

    /// Time from the start until the curve has this part: `delay + duration * part`, or
    /// `delay + duration * part ^ (1 / exponent)`.
    pub fn reaches(&self, part: u32) -> Duration {
        let part = f64::from(part) / f64::from(WHOLE);
        let time = match self.curve {
            Curve::Linear => part,
            Curve::Power => part.powf(1.0 / self.exponent.value().max(1.0)),
        };
        self.delay.duration() + self.duration.duration().mul_f64(time.clamp(0.0, 1.0))
    }

    /// When the part grows again; `None` once it is whole.
    fn next_step(&self, part: u32) -> Option<Duration> {
        (part < WHOLE).then(|| self.reaches((part / STEP + 1) * STEP))
    }

    fn minimum(&self) -> u32 {
        u32::from(self.minimum_percent) * WHOLE / 100
    }
}

/// A backend that is warming up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ramp {
    pub since: Stamp,
    /// Part of the weight now, in thousandths.
    pub part: u32,
    /// CLOCK_BOOTTIME ns of the next step.
    due: u64,
}

#[derive(Clone, Debug)]
pub enum WarmupEvent<'a> {
    /// The state was changed. A backend that begins to take connections begins to warm up; one that takes none any more
    /// is cold when it returns.
    Changed { before: &'a State, after: &'a State, touched: &'a Touched },
    /// An earlier agent has let this backend begin at `since`.
    Resumed { backend: BackendId, warmup: &'a Warmup, since: Stamp },
    /// The time of [`StateMachine::poll_timeout`] has come; settings are those of this state.
    Timeout(&'a State),
}

/// What has become of a backend's warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WarmupAction {
    /// It begins, or counts from another point in time than before.
    Begun(BackendId),
    /// Its part has grown.
    Stepped(BackendId),
    /// The backend is warm, takes no connections any more, or no longer has a warm-up.
    Ended(BackendId),
}

/// All backends that are warming up. Cloning is cheap once its actions are carried out.
#[derive(Clone, Debug, Default)]
pub struct Ramps {
    ramps: OrdMap<BackendId, Ramp>,
    /// By CLOCK_BOOTTIME ns.
    timers: Timers<u64, BackendId>,
    actions: VecDeque<WarmupAction>,
}

impl Ramps {
    pub fn get(&self, backend: BackendId) -> Option<&Ramp> {
        self.ramps.get(&backend)
    }

    /// Part of the backend's weight, in thousandths: on trial after an ejection, warming up, or whole.
    pub fn part(&self, backend: &Backend) -> u32 {
        if is_on_trial(backend) {
            return health::TRIAL_PART;
        }
        self.get(backend.id).map_or(WHOLE, |ramp| ramp.part)
    }

    /// Parts of the weights of a service's backends, in millionths; 0 for those that take nothing. A backend on trial
    /// has its part of the coldest one's in its group, so that it does not get most of a cold group.
    pub fn parts(&self, service: &Service, takes: impl Fn(&Backend) -> bool) -> Vec<u32> {
        let mut coldest = vec![WHOLE; service.groups.len()];
        for backend in service.backends.iter().filter(|b| takes(b) && !is_on_trial(b)) {
            if let Some(held) = coldest.get_mut(backend.group as usize) {
                *held = self.part(backend).min(*held);
            }
        }
        let part = |backend: &Backend| match is_on_trial(backend) {
            true => health::TRIAL_PART * coldest.get(backend.group as usize).copied().unwrap_or(WHOLE),
            false => self.part(backend) * WHOLE,
        };
        service.backends.iter().map(|backend| if takes(backend) { part(backend) } else { 0 }).collect()
    }

    /// Begins a warm-up that counts from `since`. `false`: it is over already.
    fn begin(&mut self, backend: BackendId, warmup: &Warmup, since: Stamp, now: Stamp) -> bool {
        self.end(backend);
        let elapsed = since.until(&now);
        let part = warmup.part(elapsed);
        let Some(next) = warmup.next_step(part) else { return false };
        let due = now.after(next.saturating_sub(elapsed)).ns;
        self.ramps.insert(backend, Ramp { since, part, due });
        self.timers.add(due, backend);
        true
    }

    /// `true`: the backend was warming up.
    fn end(&mut self, backend: BackendId) -> bool {
        let ramp = self.ramps.remove(&backend);
        if let Some(ramp) = ramp {
            self.timers.remove(ramp.due, backend);
        }
        ramp.is_some()
    }

    fn discard(&mut self, backend: BackendId) {
        if self.end(backend) {
            self.act(WarmupAction::Ended(backend));
        }
    }

    fn act(&mut self, action: WarmupAction) {
        self.actions.push_back(action);
    }

    /// Makes the steps that are due.
    fn advance(&mut self, state: &State, now: Stamp) {
        let due: Vec<BackendId> = self.timers.due(now.ns).collect();
        for id in due {
            let Some(since) = self.get(id).map(|ramp| ramp.since) else { continue };
            let goes_on = match state.backend(id).and_then(|(service, backend)| service.warmup(backend)) {
                Some(warmup) => self.begin(id, warmup, since, now),
                None => {
                    self.end(id);
                    false
                }
            };
            self.act(if goes_on { WarmupAction::Stepped(id) } else { WarmupAction::Ended(id) });
        }
    }

    fn follow(&mut self, before: &State, after: &State, touched: &Touched, now: Stamp) {
        for service in touched.services.iter().filter_map(|id| after.service_by_id(*id)) {
            if service.health_policy.warmup.is_none() && service.backends.iter().all(|backend| backend.own.is_none()) {
                service.backends.iter().for_each(|backend| self.discard(backend.id));
                continue;
            }
            for backend in &service.backends {
                self.follow_one(before, after, service, backend, now);
            }
        }
        let zeroed = |state: &State, node: NodeId| state.node_by_id(node).is_some_and(|node| node.zero.is_some());
        for node in touched.nodes.iter().filter(|node| zeroed(before, **node) != zeroed(after, **node)) {
            for (service, backend) in after.node_backends(*node) {
                self.follow_one(before, after, service, backend, now);
            }
        }
        touched.removed_backends.iter().for_each(|id| self.discard(*id));
    }

    fn follow_one(&mut self, before: &State, after: &State, service: &Service, backend: &Backend, now: Stamp) {
        let id = backend.id;
        let Some(warmup) = service.warmup(backend) else { return self.discard(id) };
        let former = before.backend(id).map(|(_, former)| former);
        let took = former.is_some_and(|former| takes(before, former));
        let ramp = self.get(id).map(|ramp| ramp.since);
        let (said_before, said) = (former.and_then(started), started(backend));
        let is_news = warmup.start == WarmupStart::Process && said != said_before;
        match (takes(after, backend), ramp) {
            // A report gave another start of its process.
            (true, _) if took && is_news && said.is_some() => {
                let goes_on = self.begin(id, warmup, said.unwrap_or(now), now);
                self.act(if goes_on { WarmupAction::Begun(id) } else { WarmupAction::Ended(id) });
            }
            (true, None) if took => {}
            // Its settings may have changed.
            (true, Some(since)) if took || warmup.start == WarmupStart::Process => {
                self.begin(id, warmup, since, now);
            }
            (true, _) => {
                if begins(warmup, former, backend, now).is_some_and(|since| self.begin(id, warmup, since, now)) {
                    self.act(WarmupAction::Begun(id));
                }
            }
            // The process goes on while its backend is only zeroed.
            (false, Some(_)) if warmup.start == WarmupStart::Process && is_running(backend) => {}
            (false, _) => self.discard(id),
        }
    }
}

impl StateMachine for Ramps {
    type Event<'a> = WarmupEvent<'a>;
    type Action = WarmupAction;

    fn handle(&mut self, event: WarmupEvent<'_>, now: Stamp) {
        match event {
            WarmupEvent::Changed { before, after, touched } => self.follow(before, after, touched, now),
            WarmupEvent::Resumed { backend, warmup, since } => {
                if !self.begin(backend, warmup, since, now) {
                    self.act(WarmupAction::Ended(backend));
                }
            }
            WarmupEvent::Timeout(state) => self.advance(state, now),
        }
    }

    /// The next step of any backend.
    fn poll_timeout(&self) -> Option<u64> {
        self.timers.next()
    }

    fn next_action(&mut self) -> Option<WarmupAction> {
        self.actions.pop_front()
    }
}

/// The time from which a backend that begins to take connections warms up; `None`: it does not warm up.
fn begins(warmup: &Warmup, former: Option<&Backend>, backend: &Backend, now: Stamp) -> Option<Stamp> {
    let said = started(backend);
    match warmup.start {
        WarmupStart::Ready => Some(now),
        WarmupStart::Process if said.is_some() => said,
        // A backend that was ready has a running process.
        WarmupStart::Process => (!former.is_some_and(is_running)).then_some(now),
    }
}

fn is_on_trial(backend: &Backend) -> bool {
    backend.health.as_ref().is_some_and(|health| health.is_on_trial())
}

/// When the backend's process began, if a report said so.
fn started(backend: &Backend) -> Option<Stamp> {
    backend.health.as_ref().and_then(|health| health.report.as_ref()?.started)
}

fn is_running(backend: &Backend) -> bool {
    backend.health.as_ref().is_none_or(|health| health.is_running())
}

/// Whether the backend takes connections, warm-up aside. A panic does not count: it makes nobody warm.
fn takes(state: &State, backend: &Backend) -> bool {
    let is_trusted = backend.health.as_ref().is_none_or(|health| health.is_ready() && health.ejection.is_none());
    state.is_open(backend) && is_trusted
}

#[cfg(test)]
mod tests;
