//! What is left of backends that have left the configuration: connected datagram sockets, which would go on sending to
//! nobody, and the records of flows.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use sluice_common::{
    drain::DEFAULT_QUIET,
    records::{CensusRow, ConnectionRecord},
    tables::{UDP, socket_addr},
};
use tokio::{
    runtime,
    sync::watch,
    time::{Instant, sleep_until},
};

use super::changes::{ServiceChange, ServiceChanges};
use crate::{
    host::namespaces::{Namespace, tour},
    kernel::{Meters, gauges, readings::Readings, sock_diag::Diagnosis},
    model::{Backend, BackendId, Protocol, State},
    view::published::Published,
};

/// Time from a removal to the close: that of a drain of which nobody says more.
const QUIET: Duration = Duration::from_millis(DEFAULT_QUIET as u64);
/// Time for which answers that are on their way are shown as the frontend's: resolvers wait no longer (RES_TIMEOUT). Ids
/// are not given out again so soon.
const LATE_ANSWERS: Duration = Duration::from_secs(5);

/// Starts the thread, which ends with the engine.
///
/// # Errors
/// When there is no thread or no timer to be had.
pub fn spawn(published: watch::Receiver<Arc<Published>>, meters: Arc<Meters>) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_time().build().context("waiting for removals")?;
    let run = move || runtime.block_on(Leftovers::new(meters).follow(published));
    thread::Builder::new().name("removed".into()).spawn(run).context("starting the thread that waits for removals")?;
    Ok(())
}

/// Removed backends of services with UDP frontends.
struct Leftovers {
    meters: Arc<Meters>,
    /// Those of which nobody said that they carry streams, in the order of time.
    to_close: VecDeque<(Instant, Vec<BackendId>)>,
    to_forget: VecDeque<(Instant, Vec<BackendId>)>,
}

impl Leftovers {
    fn new(meters: Arc<Meters>) -> Self {
        Self { meters, to_close: VecDeque::new(), to_forget: VecDeque::new() }
    }

    async fn follow(mut self, mut published: watch::Receiver<Arc<Published>>) {
        let mut changes = ServiceChanges::default();
        // Removed before this agent came, or in its absence.
        let (close, forget) = self.meters.removed();
        self.note(close, forget);
        loop {
            let state = published.borrow_and_update().state.clone();
            let (mut close, mut forget) = (Vec::new(), Vec::new());
            for change in changes.take(&state) {
                removed(&change, &mut close, &mut forget);
            }
            self.note(close, forget);
            let due = [&self.to_close, &self.to_forget].into_iter().filter_map(|queue| Some(queue.front()?.0)).min();
            let changed = async {
                match due {
                    Some(due) => tokio::select! {
                        changed = published.changed() => changed.is_ok(),
                        () = sleep_until(due) => true,
                    },
                    None => published.changed().await.is_ok(),
                }
            };
            if !changed.await {
                return;
            }
            self.act(&state);
        }
    }

    fn note(&mut self, close: Vec<BackendId>, forget: Vec<BackendId>) {
        let now = Instant::now();
        for (queue, backends, after) in
            [(&mut self.to_close, close, QUIET), (&mut self.to_forget, forget, LATE_ANSWERS)]
        {
            if !backends.is_empty() {
                queue.push_back((now + after, backends));
            }
        }
    }

    /// Does what is due.
    fn act(&mut self, state: &State) {
        let now = Instant::now();
        while let Some((_, backends)) = self.to_close.pop_front_if(|(due, _)| *due <= now) {
            match close(&self.meters, &backends, state) {
                Ok(0) => {}
                Ok(closed) => tracing::info!("closed {closed} datagram sockets of removed backends"),
                Err(error) => tracing::warn!("datagram sockets of removed backends may stay open: {error:#}"),
            }
        }
        while let Some((_, backends)) = self.to_forget.pop_front_if(|(due, _)| *due <= now) {
            if let Err(error) = self.meters.forget_flows(&backends) {
                tracing::warn!("answers of removed backends may be shown as those of their frontends: {error:#}");
            }
        }
    }
}

/// The backends that a change of a service removes, if datagrams went to them.
fn removed(change: &ServiceChange, close: &mut Vec<BackendId>, forget: &mut Vec<BackendId>) {
    let Some(before) = &change.before else { return };
    if !before.frontends.iter().any(|frontend| frontend.protocol == Protocol::Udp) {
        return;
    }
    let after: &[Backend] = change.after.as_ref().map_or(&[], |after| &after.backends);
    let after: BTreeSet<BackendId> = after.iter().map(|backend| backend.id).collect();
    let gone: Vec<_> = before.backends.iter().map(|backend| backend.id).filter(|id| !after.contains(id)).collect();
    if !before.keeps_flows() {
        close.extend(&gone);
    }
    forget.extend(gone);
}

/// Closes the connected datagram sockets of backends, as a drain does; but not those that went where a backend is still,
/// under another name. Returns how many.
fn close(meters: &Meters, backends: &[BackendId], state: &State) -> Result<u64> {
    let counters = meters.counters(backends)?;
    let in_use = backends.iter().zip(&counters).filter(|(_, counters)| gauges::open(counters) != 0);
    let leaving: BTreeSet<u32> = in_use.map(|(id, _)| id.0).collect();
    if leaving.is_empty() {
        return Ok(0);
    }
    let mut places: BTreeMap<u64, Vec<CensusRow>> = BTreeMap::new();
    let there: HashSet<SocketAddr> =
        state.services().flat_map(|service| &service.backends).map(|backend| backend.address).collect();
    for row in meters.census()?.rows.into_iter().filter(CensusRow::is_current) {
        let ConnectionRecord { protocol, backend_id, backend, backend_port, .. } = row.connection;
        let is_left = protocol == UDP && leaving.contains(&backend_id);
        if is_left && !there.contains(&socket_addr(&backend, backend_port)) {
            places.entry(row.netns).or_default().push(row);
        }
    }
    let mut closed = 0;
    for (cookie, rows) in places {
        let pids: BTreeSet<u32> = rows.iter().map(|row| row.connection.pid).collect();
        let namespace = pids.into_iter().find_map(|pid| Namespace::with_cookie(cookie, 0, pid));
        let namespace = namespace.context("a network namespace cannot be found")?;
        let close = |rows: Vec<CensusRow>| {
            let diagnosis = Diagnosis::open()?;
            rows.iter().try_fold(0, |closed, row| Ok(closed + u64::from(diagnosis.close(row, false)?)))
        };
        for result in tour([(&namespace, rows)], close) {
            closed += result?;
        }
    }
    Ok(closed)
}
