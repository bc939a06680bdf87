//! What waits on behalf of the steering thread: for programs that may still read a retired table, for connections of
//! removed backends, and for connections whose end nobody saw.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use sluice_common::records::Phase;

use crate::{
    handle::Command,
    kernel::{self, Meters},
    model::BackendId,
    observe::gauges,
    plan::Retired,
};

/// Time between two looks at backends that were removed and still have connections, and between two censuses.
const PERIOD: Duration = Duration::from_secs(30);

/// Collects what is retired, and hands it to a thread that waits until no program can see it.
pub struct Keeper {
    to_waiter: Sender<Retired>,
}

impl Keeper {
    pub fn new(commands: Sender<Command>) -> Self {
        let (to_waiter, retired) = mpsc::channel::<Retired>();
        thread::spawn(move || wait(&retired, &commands));
        Self { to_waiter }
    }

    /// `retired` comes back as [`Command::Quiesced`] when every program that may have read it has ended.
    pub fn retire(&self, retired: Retired) {
        if !retired.is_empty() {
            // The waiter ends only with the process.
            let _ = self.to_waiter.send(retired);
        }
    }

    /// Backends come back the same way after a while, to be looked at for connections.
    pub fn wait_for(&self, backends: Vec<BackendId>) {
        self.retire(Retired { waited: true, backends, ..Retired::default() });
    }
}

fn wait(retired: &mpsc::Receiver<Retired>, commands: &Sender<Command>) {
    let mut waiting = Retired { waited: true, ..Retired::default() };
    let mut ask_at = Instant::now() + PERIOD;
    loop {
        let mut quiesced = Retired::default();
        match retired.recv_timeout(ask_at.saturating_duration_since(Instant::now())) {
            Ok(first) => {
                for some in std::iter::once(first).chain(retired.try_iter()) {
                    if some.waited { waiting.extend(some) } else { quiesced.extend(some) }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        let mut ready = Vec::new();
        if !quiesced.is_empty() {
            kernel::wait_for_readers();
            ready.push(quiesced);
        }
        if ask_at <= Instant::now() {
            ask_at = Instant::now() + PERIOD;
            ready.push(std::mem::replace(&mut waiting, Retired { waited: true, ..Retired::default() }));
        }
        for batch in ready.into_iter().filter(|batch| !batch.is_empty()) {
            if commands.send(Command::Quiesced(batch)).is_err() {
                return;
            }
        }
    }
}

/// Compares the gauges with a census now and then, and reports connections that are counted as open and are not there.
///
/// A difference counts when it is seen twice, with counters that stood still during the census.
pub fn heal(meters: Arc<Meters>, commands: Sender<Command>, period: Duration) {
    thread::spawn(move || {
        let mut suspects: HashMap<BackendId, u64> = HashMap::new();
        loop {
            thread::sleep(period);
            let found = match surplus(&meters) {
                Ok(found) => found,
                Err(error) => {
                    tracing::warn!("the connection gauges cannot be checked: {error:#}");
                    continue;
                }
            };
            let confirmed: Vec<_> = found
                .iter()
                .filter_map(|(id, extra)| suspects.get(id).map(|before| (*id, *extra.min(before))))
                .collect();
            suspects = found;
            for (id, _) in &confirmed {
                suspects.remove(id);
            }
            if !confirmed.is_empty() && commands.send(Command::Lost(confirmed)).is_err() {
                return;
            }
        }
    });
}

/// Connections counted as open beyond those that a census finds.
fn surplus(meters: &Meters) -> anyhow::Result<HashMap<BackendId, u64>> {
    let before = meters.in_use()?;
    if before.is_empty() {
        return Ok(HashMap::new());
    }
    let census = meters.census()?;
    let ids: Vec<BackendId> = before.iter().map(|(id, _)| *id).collect();
    let after = meters.counters(&ids)?;
    let mut open: HashMap<u32, u64> = HashMap::new();
    for row in &census.rows {
        let phase = row.connection.phase;
        if phase == Phase::Opened as u8 || phase == Phase::Established as u8 {
            *open.entry(row.connection.backend_id).or_default() += 1;
        }
    }
    let still = before.into_iter().zip(after).filter(|((_, before), after)| before == after);
    Ok(still
        .filter_map(|((id, counters), _)| {
            let extra = gauges::open(&counters).saturating_sub(open.get(&id.0).copied().unwrap_or(0));
            (extra > 0).then_some((id, extra))
        })
        .collect())
}
