//! Shows decisions to those who watch. The thread sleeps while nobody does; the first who comes has it put the observed
//! programs in place, and when the last one has gone it puts the usual ones back.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use sluice_common::decision::{DecisionFilter, DecisionRecord};
use tokio::sync::{oneshot, watch};

use crate::{
    engine::client::{MonitorHandle, MonitorRequest},
    host::clock,
    kernel::{Observation, ObservedPrograms},
    telemetry::Instruments,
    view::{
        decisions::{DecisionNames, LostDecisions, MonitorFilter, Told},
        published::Published,
    },
};

/// While somebody watches: time between two looks at who came, who went, and what a service's name stands for.
const LOOK: Duration = Duration::from_millis(100);
/// Time between two attempts to put the usual programs back.
const AGAIN: Duration = Duration::from_secs(1);

pub struct MonitorWorker {
    pub observation: Observation,
    pub published: watch::Receiver<Arc<Published>>,
    pub instruments: Arc<Instruments>,
    /// Whether the programs' own messages go to the log: then the observed ones are in place all the time.
    pub logs: bool,
}

/// The thread. It ends when everybody has let go of the other end of its channel, or when it is told.
pub struct MonitorThread {
    monitor: MonitorHandle,
    thread: JoinHandle<()>,
}

struct Watcher {
    filter: MonitorFilter,
    /// The same for the programs, as names are now.
    own: DecisionFilter,
    sender: tokio::sync::mpsc::Sender<Arc<Told>>,
    /// CLOCK_MONOTONIC ns: what was decided before was for others.
    since: u64,
    /// Until the kernel has its filter.
    reply: Option<oneshot::Sender<Result<()>>>,
    /// Not told yet that so many were not told.
    lost: u64,
}

/// Starts the thread.
///
/// # Errors
/// When there is none to be had.
pub fn spawn(worker: MonitorWorker) -> Result<MonitorThread> {
    let (monitor, requests) = mpsc::channel();
    let thread = thread::Builder::new().name("monitor".into()).spawn(move || worker.run(&requests));
    Ok(MonitorThread {
        monitor: MonitorHandle(monitor),
        thread: thread.context("starting the thread that shows decisions")?,
    })
}

impl MonitorThread {
    /// Where watchers ask.
    pub fn monitor(&self) -> MonitorHandle {
        self.monitor.clone()
    }

    /// Ends the thread; the usual programs are in place then.
    pub fn stop(self) {
        // A thread that has ended needs no telling.
        let _ = self.monitor.0.send(MonitorRequest::Stop);
        let _ = self.thread.join();
    }
}

impl MonitorWorker {
    fn run(mut self, requests: &Receiver<MonitorRequest>) {
        // In place all the time, if at all.
        let mut observed = None;
        if self.logs {
            match self.observation.begin(true) {
                Ok(begun) => observed = Some(begun),
                Err(error) => tracing::error!("the programs' own messages cannot be logged: {error:#}"),
            }
        }
        let stays = observed.is_some();
        loop {
            let is_late = observed.is_none() && self.observation.is_in_place();
            let request = match requests.recv_timeout(if is_late { AGAIN } else { Duration::MAX }) {
                Ok(request) => request,
                Err(RecvTimeoutError::Timeout) => {
                    if self.observation.end().is_ok() {
                        tracing::info!("the usual programs are back");
                    }
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            };
            let MonitorRequest::Begin { filter, sender, reply } = request else { break };
            let begun = match observed.take() {
                Some(begun) => Ok(begun),
                None => self.observation.begin(false),
            };
            let mut begun = match begun {
                Ok(begun) => begun,
                Err(error) => {
                    tracing::warn!("decisions cannot be shown: {error:#}");
                    let _ = reply.send(Err(error));
                    continue;
                }
            };
            let goes_on = self.show(&mut begun, vec![Watcher::new(filter, sender, reply)], requests);
            self.instruments.watched_by(0);
            begun.ask(&DecisionFilter::OFF);
            if stays {
                observed = Some(begun);
            } else {
                self.end();
            }
            if !goes_on {
                break;
            }
        }
        self.end();
    }

    fn end(&mut self) {
        if let Err(error) = self.observation.end() {
            tracing::warn!("the usual programs cannot be put back, the observed ones steer in their place: {error:#}");
        }
    }

    /// Until the last watcher has gone; `false`: the agent stops.
    fn show(
        &self,
        observed: &mut ObservedPrograms,
        mut watchers: Vec<Watcher>,
        requests: &Receiver<MonitorRequest>,
    ) -> bool {
        let mut names = DecisionNames::new(self.published.borrow().clone());
        let mut lost = observed.lost();
        let mut before = DecisionFilter::OFF;
        loop {
            names.refresh(self.published.borrow().clone());
            watchers.iter_mut().for_each(|watcher| watcher.own = watcher.filter.for_kernel(names.state()));
            let together = watchers.iter().fold(DecisionFilter::OFF, |all, watcher| all.or(&watcher.own));
            observed.ask(&together);
            watchers.iter_mut().filter_map(|watcher| watcher.reply.take()).for_each(|reply| drop(reply.send(Ok(()))));
            // Some of what is in the ring may have come there by the filter before this one.
            let asked = before.or(&together);
            before = together;
            self.instruments.watched_by(watchers.len());
            let told = match observed.wait(LOOK) {
                Ok(told) => told,
                Err(error) => {
                    tracing::warn!("waiting for decisions: {error}");
                    return true;
                }
            };
            // What was published before a decision was made is what its names stand for.
            names.refresh(self.published.borrow().clone());
            let lost_now = observed.lost();
            let more = lost_now.wrapping_sub(lost);
            lost = lost_now;
            let unsent: u64 = told.iter().map(|decision| tell(&mut names, &mut watchers, &asked, decision)).sum();
            self.instruments.decided(told.len() as u64, more + unsent);
            for watcher in &mut watchers {
                watcher.lost += more;
                watcher.tell_lost();
            }
            watchers.retain(|watcher| !watcher.sender.is_closed());
            for request in requests.try_iter() {
                let MonitorRequest::Begin { filter, sender, reply } = request else { return false };
                watchers.push(Watcher::new(filter, sender, reply));
            }
            if watchers.is_empty() {
                return true;
            }
        }
    }
}

/// Tells everybody who wants to know of it; returns how many could not be told.
fn tell(names: &mut DecisionNames, watchers: &mut [Watcher], asked: &DecisionFilter, decision: &DecisionRecord) -> u64 {
    let cgroup = names.cgroup(decision.cgroup, decision.pid);
    let (mut wanted, mut unsent) = (Vec::new(), 0);
    for watcher in watchers {
        match watcher.wants(asked, decision, cgroup.as_deref()) {
            Some(true) => wanted.push(watcher),
            Some(false) => {}
            None => {
                watcher.lost += 1;
                unsent += 1;
            }
        }
    }
    if wanted.is_empty() {
        return unsent;
    }
    let Some(told) = names.decision(decision).map(|decision| Arc::new(Told::Decision(decision))) else { return unsent };
    unsent + wanted.into_iter().map(|watcher| u64::from(!watcher.tell(told.clone()))).sum::<u64>()
}

impl Watcher {
    fn new(
        filter: MonitorFilter,
        sender: tokio::sync::mpsc::Sender<Arc<Told>>,
        reply: oneshot::Sender<Result<()>>,
    ) -> Self {
        Self { filter, own: DecisionFilter::OFF, sender, since: clock::monotonic_ns(), reply: Some(reply), lost: 0 }
    }

    /// See [`MonitorFilter::fits`].
    fn wants(&self, asked: &DecisionFilter, decision: &DecisionRecord, cgroup: Option<&str>) -> Option<bool> {
        if decision.time < self.since {
            return Some(false);
        }
        self.filter.fits(&self.own, asked, decision, cgroup)
    }

    /// `false`: it takes them too slowly, and is told later that it missed one. Nobody waits for it.
    fn tell(&mut self, told: Arc<Told>) -> bool {
        let is_told = self.tell_lost() && self.sender.try_send(told).is_ok();
        if !is_told {
            self.lost += 1;
        }
        is_told
    }

    /// Tells what it missed, if anything; `false`: there still is no room.
    fn tell_lost(&mut self) -> bool {
        let lost = Arc::new(Told::Lost(LostDecisions { lost: self.lost }));
        if self.lost == 0 || self.sender.try_send(lost).is_ok() {
            self.lost = 0;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use sluice_common::{
        decision::{BY_CGROUP, NONE, SKIPPED, SkippedRecord},
        tables::Endpoint,
    };
    use tokio::sync::mpsc;

    use super::*;

    fn watcher(filter: MonitorFilter, room: usize) -> (Watcher, mpsc::Receiver<Arc<Told>>) {
        let (sender, receiver) = mpsc::channel(room);
        (Watcher { own: DecisionFilter::ON, ..Watcher::new(filter, sender, oneshot::channel().0) }, receiver)
    }

    fn decision(time: u64) -> DecisionRecord {
        let nowhere = Endpoint::v6([0; 4], 0, 0);
        let nobody = SkippedRecord { backend_id: NONE, why: 0 };
        DecisionRecord {
            time,
            cgroup: 7,
            pid: 1,
            program: 0,
            verdict: 0,
            service_id: 1,
            backend_id: NONE,
            frontend: nowhere,
            backend: nowhere,
            command: [0; 16],
            skips: 0,
            skipped: [nobody; SKIPPED],
        }
    }

    #[test]
    fn what_was_decided_for_another_is_not_told() {
        let (watcher, _receiver) = watcher(MonitorFilter::default(), 1);
        let wants = |time| watcher.wants(&DecisionFilter::ON, &decision(time), None);
        assert_eq!([wants(watcher.since - 1), wants(watcher.since)], [Some(false), Some(true)]);
    }

    #[test]
    fn a_cgroup_that_is_gone_was_where_the_kernel_saw_it_or_nobody_can_say() {
        let (watcher, _receiver) = watcher(MonitorFilter { cgroup: Some((3, "/a".into())), ..Default::default() }, 1);
        let this = DecisionFilter { asked: DecisionFilter::ON.asked | BY_CGROUP, cgroup: 3, ..DecisionFilter::ON };
        let all = DecisionFilter::ON;
        for (asked, cgroup, expected) in [
            (&this, None, Some(true)),
            (&all, None, None),
            (&all, Some("/a/b"), Some(true)),
            (&all, Some("/ab"), Some(false)),
            (&DecisionFilter { cgroup: 4, ..this }, None, None),
        ] {
            assert_eq!(watcher.wants(asked, &decision(watcher.since), cgroup), expected, "{asked:?}, {cgroup:?}");
        }
        let foreign = DecisionRecord { service_id: NONE, ..decision(watcher.since) };
        assert_eq!(watcher.wants(&all, &foreign, None), Some(false), "whatever its cgroup was");
    }

    #[test]
    fn who_is_too_slow_learns_how_much_it_missed() {
        let (mut watcher, mut receiver) = watcher(MonitorFilter::default(), 2);
        let news = |lost| Arc::new(Told::Lost(LostDecisions { lost }));
        let told: Vec<bool> = (0..5).map(|_| watcher.tell(news(0))).collect();
        assert_eq!((told, watcher.lost), (vec![true, true, false, false, false], 3));
        assert!(receiver.try_recv().is_ok() && watcher.tell_lost());
        assert!(receiver.try_recv().is_ok());
        assert_eq!(receiver.try_recv().unwrap(), news(3));
        assert!(watcher.tell(news(7)));
        assert_eq!(receiver.try_recv().unwrap(), news(7));
    }
}
