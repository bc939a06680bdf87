//! Shows decisions to those who watch. The thread sleeps while nobody does; the first who comes has it put the observed
//! programs in place, and when the last one has gone it puts the usual ones back.

use std::{
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result};
use sluice_common::decision::{self, DecisionFilter};
use tokio::sync::watch;

use crate::{
    engine::client::{MonitorHandle, MonitorRequest},
    kernel::{Observation, ObservedPrograms},
    telemetry::Instruments,
    view::{
        decisions::{DecisionNames, LostDecisions, MonitorFilter, Told},
        published::Published,
    },
};

/// While somebody watches: time between two looks at who came, who went, and what a service's name stands for.
const LOOK: Duration = Duration::from_millis(100);

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
        while let Ok(request) = requests.recv() {
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
            let mut watchers = vec![Watcher::new(filter, sender)];
            let _ = reply.send(Ok(()));
            let goes_on = self.show(&mut begun, &mut watchers, requests);
            self.instruments.watched_by(0);
            if stays {
                begun.ask(&DecisionFilter::OFF);
                observed = Some(begun);
            } else {
                self.end(begun);
            }
            if !goes_on {
                break;
            }
        }
        if let Some(observed) = observed {
            self.end(observed);
        }
    }

    fn end(&mut self, observed: ObservedPrograms) {
        if let Err(error) = self.observation.end(observed) {
            tracing::warn!("the usual programs cannot be put back, the observed ones steer in their place: {error:#}");
        }
    }

    /// Until the last watcher has gone; `false`: the agent stops.
    fn show(
        &self,
        observed: &mut ObservedPrograms,
        watchers: &mut Vec<Watcher>,
        requests: &Receiver<MonitorRequest>,
    ) -> bool {
        let mut names = DecisionNames::new(self.published.borrow().clone());
        let mut lost = observed.lost();
        loop {
            names.refresh(self.published.borrow().clone());
            watchers.iter_mut().for_each(|watcher| watcher.own = watcher.filter.for_kernel(names.state()));
            let together = watchers.iter().fold(DecisionFilter::OFF, |all, watcher| all.or(&watcher.own));
            observed.ask(&together);
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
            let unsent: u64 = told.iter().map(|decision| tell(&mut names, watchers, decision)).sum();
            self.instruments.decided(told.len() as u64, more + unsent);
            for watcher in watchers.iter_mut() {
                watcher.lost += more;
                watcher.tell_lost();
            }
            watchers.retain(|watcher| !watcher.sender.is_closed());
            for request in requests.try_iter() {
                let MonitorRequest::Begin { filter, sender, reply } = request else { return false };
                watchers.push(Watcher::new(filter, sender));
                let _ = reply.send(Ok(()));
            }
            if watchers.is_empty() {
                return true;
            }
        }
    }
}

/// Tells everybody who wants to know of it; returns how many could not be told.
fn tell(names: &mut DecisionNames, watchers: &mut [Watcher], decision: &decision::DecisionRecord) -> u64 {
    let cgroup = names.cgroup(decision.cgroup, decision.pid);
    let mut wanted =
        watchers.iter_mut().filter(|watcher| watcher.filter.fits(&watcher.own, decision, cgroup.as_deref())).peekable();
    if wanted.peek().is_none() {
        return 0;
    }
    let Some(told) = names.decision(decision).map(|decision| Arc::new(Told::Decision(decision))) else { return 0 };
    wanted.map(|watcher| u64::from(!watcher.tell(told.clone()))).sum()
}

impl Watcher {
    fn new(filter: MonitorFilter, sender: tokio::sync::mpsc::Sender<Arc<Told>>) -> Self {
        Self { filter, own: DecisionFilter::OFF, sender, lost: 0 }
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
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn who_is_too_slow_learns_how_much_it_missed() {
        let (sender, mut receiver) = mpsc::channel(2);
        let mut watcher = Watcher::new(MonitorFilter::default(), sender);
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
