//! Waits on behalf of the engine: for programs that may still read a retired table, for connections of removed backends,
//! and for connections whose end nobody saw.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use sluice_common::tables::Counters;

use crate::{
    engine::client::{Command, Lost},
    kernel::{self, Meters, gauges::Gauges, readings::Readings},
    model::{BackendId, NodeId, ServiceId},
    plan::Retired,
};

/// Time between two looks at backends that were removed and still have connections, and between two censuses.
const PERIOD: Duration = Duration::from_secs(30);

/// Collects what is retired, and hands it to a thread that waits until no program can see it.
pub struct Reclaimer {
    to_waiter: Sender<Retired>,
    /// What is waited for, each once. (Regions are [`crate::plan::Programmed`]'s to tell apart.)
    services: HashSet<ServiceId>,
    backends: HashSet<BackendId>,
    nodes: HashSet<NodeId>,
}

impl Reclaimer {
    pub fn new(commands: Sender<Command>) -> Self {
        let (to_waiter, retired) = mpsc::channel::<Retired>();
        thread::spawn(move || wait(&retired, &commands));
        Self { to_waiter, services: HashSet::new(), backends: HashSet::new(), nodes: HashSet::new() }
    }

    /// `retired` comes back as [`Command::GracePeriodElapsed`] when every program that may have read it has ended, but for
    /// what is waited for already.
    pub fn retire(&mut self, mut retired: Retired) {
        retired.services.retain(|id| self.services.insert(*id));
        retired.backends.retain(|id| self.backends.insert(*id));
        retired.nodes.retain(|id| self.nodes.insert(*id));
        if !retired.is_empty() {
            // The waiter ends only with the process.
            let _ = self.to_waiter.send(retired);
        }
    }

    /// Takes note of what has come back.
    pub fn came_back(&mut self, retired: &Retired) {
        for id in &retired.services {
            self.services.remove(id);
        }
        for id in &retired.backends {
            self.backends.remove(id);
        }
        for id in &retired.nodes {
            self.nodes.remove(id);
        }
    }

    /// Backends come back the same way after a while, to be looked at for connections.
    pub fn wait_for(&mut self, backends: Vec<BackendId>) {
        self.retire(Retired { waited: true, backends, ..Retired::default() });
    }
}

fn wait(retired: &mpsc::Receiver<Retired>, commands: &Sender<Command>) {
    // In the order of their times.
    let mut waiting: VecDeque<(Instant, Retired)> = VecDeque::new();
    loop {
        let mut unseen = Retired::default();
        let next = waiting.front().map_or(PERIOD, |(at, _)| at.saturating_duration_since(Instant::now()));
        match retired.recv_timeout(next) {
            Ok(first) => {
                for some in std::iter::once(first).chain(retired.try_iter()) {
                    if some.waited {
                        waiting.push_back((Instant::now() + PERIOD, some));
                    } else {
                        unseen.extend(some);
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let mut ready = Vec::new();
        if !unseen.is_empty() {
            kernel::wait_for_readers();
            ready.push(unseen);
        }
        while let Some((_, batch)) = waiting.pop_front_if(|(at, _)| *at <= Instant::now()) {
            ready.push(batch);
        }
        for batch in ready.into_iter().filter(|batch| !batch.is_empty()) {
            if commands.send(Command::GracePeriodElapsed(batch)).is_err() {
                return;
            }
        }
    }
}

/// Compares the gauges with the sockets now and then, and reports connections that are counted as open and are not
/// there. A difference counts when it is seen twice.
pub fn heal(meters: Arc<Meters>, commands: Sender<Command>, period: Duration) {
    thread::spawn(move || {
        let mut suspects: HashMap<BackendId, Lost> = HashMap::new();
        loop {
            thread::sleep(period);
            let found = match missing(&meters) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!("the connection gauges cannot be checked: {error:#}");
                    continue;
                }
            };
            let confirmed: Vec<_> = found.iter().filter_map(|(id, now)| both(suspects.get(id)?, now)).collect();
            suspects = found;
            for lost in &confirmed {
                suspects.remove(&lost.backend);
            }
            if !confirmed.is_empty() && commands.send(Command::Lost(confirmed)).is_err() {
                return;
            }
        }
    });
}

/// Connections that are counted as open and are not there, as two looks in a row see them.
///
/// # Errors
/// When the sockets or the counters cannot be read.
pub fn lost(meters: &Meters) -> anyhow::Result<Vec<Lost>> {
    let suspects = missing(meters)?;
    if suspects.is_empty() {
        return Ok(Vec::new());
    }
    let found = missing(meters)?;
    Ok(found.iter().filter_map(|(id, now)| both(suspects.get(id)?, now)).collect())
}

/// What two looks agree on.
fn both(before: &Lost, now: &Lost) -> Option<Lost> {
    let lost = Lost {
        backend: now.backend,
        established: now.established.min(before.established),
        connecting: now.connecting.min(before.connecting),
    };
    (lost.established + lost.connecting > 0).then_some(lost)
}

/// Connections that were counted as open before the tally, did not end during it, and were not found by it.
///
/// What is found is at least as old as the first reading, but for the instant between that and its time stamp; what
/// ended may be younger. Both errors make the answer smaller, never larger.
fn missing(meters: &Meters) -> anyhow::Result<HashMap<BackendId, Lost>> {
    let before = meters.in_use()?;
    if before.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<BackendId> = before.iter().map(|(id, _)| *id).collect();
    let tally = meters.tally(&ids)?;
    let after = meters.counters(&ids)?;
    let mut found = HashMap::new();
    for (((id, before), after), (connecting, established)) in before.into_iter().zip(after).zip(tally) {
        let gauges = Gauges::of(&before);
        let failed = |counters: &Counters| counters.failed.iter().sum::<u64>();
        // A backend may have been forgotten in between: then nothing is missing.
        let closed = (after.closed + after.lost).saturating_sub(before.closed + before.lost);
        let settled = (after.established + failed(&after)).saturating_sub(before.established + failed(&before));
        let lost = Lost {
            backend: id,
            established: gauges.active.saturating_sub(closed).saturating_sub(established),
            connecting: gauges.connecting.saturating_sub(settled).saturating_sub(connecting),
        };
        if lost.established + lost.connecting > 0 {
            found.insert(id, lost);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_is_not_waited_for_again_until_it_came_back() {
        let (commands, come_back) = mpsc::channel();
        let mut reclaimer = Reclaimer::new(commands);
        let backends =
            |ids: &[u32]| Retired { backends: ids.iter().copied().map(BackendId).collect(), ..Retired::default() };
        let next = || match come_back.recv_timeout(PERIOD) {
            Ok(Command::GracePeriodElapsed(retired)) => retired,
            _ => panic!("nothing came back"),
        };
        reclaimer.retire(backends(&[1, 2]));
        let first = next();
        assert_eq!(first.backends, [BackendId(1), BackendId(2)]);
        reclaimer.retire(backends(&[2, 3]));
        assert_eq!(next().backends, [BackendId(3)]);
        reclaimer.came_back(&first);
        reclaimer.retire(backends(&[2, 3]));
        assert_eq!(next().backends, [BackendId(2)]);
    }
}
