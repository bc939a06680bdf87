//! From settings to a running engine.

use std::{
    collections::BTreeSet,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sluice_common::tables::{BackendEntry, CLOSED_REMOVED, CLOSED_ZERO, Endpoint};
use tokio::sync::oneshot;

use super::{
    audit::Audit,
    event_loop::{Engine, EngineParts},
    looks::Portions,
    workers::{
        attachment,
        drain::{self, DrainWorker, EndedBefore, Looker, NamespaceCache},
        health::{self, HealthScheduler},
        monitor::{self, MonitorWorker},
        outlier::{self, OutlierWorker},
        reclaim, removed,
    },
};
use crate::{
    engine::{Handle, client::Command},
    host::clock,
    kernel::{self, Held, Kernel, Sizes},
    model::{BackendId, State, words::plural},
    plan::{DataPlane, Programmed},
    settings::{Brake, Listen, Settings},
    source::{
        files::{FileEvent, Files},
        reconcile::{Excluded, Reconciler},
        store::Store,
        watcher::{FileWatcher, LookResult, watch},
    },
    telemetry::{Instruments, logs},
    view::{
        events::{EventKind, EventLog},
        operations::Operations,
        published::AgentReadiness,
    },
};

/// An engine at work, on a thread of its own. Dropping this does not end it: see [`RunningEngine::stop`].
pub struct RunningEngine {
    pub handle: Handle,
    commands: Sender<Command>,
    thread: JoinHandle<()>,
    monitor: monitor::MonitorThread,
    _watches: Vec<FileWatcher>,
}

impl RunningEngine {
    /// Ends the thread after what it is doing. Steering goes on in the kernel, with the usual programs.
    pub fn stop(self) {
        self.monitor.stop();
        // A thread that has ended needs no telling.
        let _ = self.commands.send(Command::Stop);
        let _ = self.thread.join();
    }
}

/// Of the boot in which an agent of this store last steered.
const BOOT: &str = "boot";

/// Opens the store, loads or adopts the data plane, brings it to the desired state, and starts to serve.
///
/// # Errors
/// A sentence that says what is missing and what to do. Whatever was steered before goes on.
pub fn start(settings: &Settings) -> Result<RunningEngine> {
    let instruments = Arc::new(Instruments::new()?);
    kernel::features::require_rights()?;
    raise_limit();
    let (store, state) = Store::open(&settings.state_dir, settings.limits, settings.brake.accept_damage)?;
    let state = state.with_api(match settings.listen {
        Listen::On(address) => Some(address),
        Listen::Off => None,
    });
    // What may fail comes before anything is attached.
    let mut files = Vec::new();
    for path in &settings.apply {
        files.push(Files::new(path, store.files()?)?);
    }
    let mut known = vec![store.files()?; files.len()];
    let found: Vec<_> = files.iter_mut().map(|files| files.scan(Instant::now())).collect();
    let is_ours =
        |held: &Held| check_identity(&store, &state, held, settings.brake, || desired(&store, &state, &found));
    let mut kernel = Kernel::open(&kernel_config(settings), is_ours)?;
    kernel.set_store_identity(store.identity());
    if settings.brake.accept_older {
        kernel.saved(state.revision());
    }
    // What an agent before this one has left may still be read, and counts as free from here on.
    kernel::wait_for_readers();
    let meters = kernel.meters();
    let events = Arc::new(EventLog::default());
    let operations = Arc::new(Operations::default());
    let (commands, requests) = mpsc::channel();
    let (begun, drains) = mpsc::channel();
    let (keeper, absent) = (kernel.take_keeper(), kernel.absent().to_vec());
    let (passes, signals, streaks) = (kernel.take_passes(), kernel.take_signals(), kernel.streaks());
    let observation = kernel.take_observation().context("somebody else shows decisions already")?;
    let beginning = EngineParts {
        state,
        machine: kernel,
        store,
        events: events.clone(),
        operations: operations.clone(),
        instruments: instruments.clone(),
        begun,
        commands: commands.clone(),
        slots: settings.max_slots,
        absent,
        brake: settings.brake,
    };
    let (mut steering, published) = Engine::new(beginning);
    let seen = found.iter().map(|events| events.iter().map(|event| event.file().to_owned()).collect::<Vec<_>>());
    let seen: Vec<_> = seen.collect();
    known.iter_mut().zip(&seen).for_each(|(known, seen)| known.extend(seen.iter().cloned()));
    for ((files, seen), taken_in) in files.iter_mut().zip(seen).zip(steering.begin(found)?) {
        if !taken_in {
            files.look_again(seen);
        }
    }
    let thread = spawn(steering, requests)?;
    if let Some(keeper) = keeper {
        attachment::spawn(keeper, commands.clone())?;
    }
    let watches = files.into_iter().zip(known).map(|(files, known)| {
        let commands = commands.clone();
        let mut portions = Portions::new(known);
        watch(files, move |events| {
            let mut result = LookResult::TakenIn;
            for events in portions.of(events) {
                let (reply, answer) = oneshot::channel();
                // Nobody answers once the agent stops.
                match commands.send(Command::Files { events, reply }).map(|()| answer.blocking_recv()) {
                    Ok(Ok(Ok(()))) => {}
                    Ok(Ok(Err(_))) => result = LookResult::Failed,
                    Ok(Err(_)) | Err(_) => return ControlFlow::Break(()),
                }
            }
            ControlFlow::Continue(result)
        })
    });
    let watches = watches.collect::<Result<_>>()?;
    if let Some(signals) = signals {
        outlier::spawn(OutlierWorker {
            signals,
            streaks,
            meters: meters.clone(),
            published: published.clone(),
            commands: commands.clone(),
            instruments: instruments.clone(),
            mark: settings.mark,
        });
    }
    removed::spawn(published.clone(), meters.clone())?;
    reclaim::heal(meters.clone(), commands.clone(), settings.census_interval);
    if let Some(passes) = passes {
        let drainer = DrainWorker {
            looker: Looker {
                passes,
                meters: meters.clone(),
                cgroup: settings.cgroup.clone(),
                namespaces: NamespaceCache::default(),
                ended: EndedBefore::default(),
            },
            published: published.clone(),
            commands: commands.clone(),
            operations: operations.clone(),
            events: events.clone(),
            instruments: instruments.clone(),
        };
        drain::spawn(drainer, drains);
    }
    health::spawn(HealthScheduler {
        published: published.clone(),
        commands: commands.clone(),
        instruments: instruments.clone(),
        probing: settings.probing.clone(),
        mark: settings.mark,
    })?;
    let monitor = monitor::spawn(MonitorWorker {
        observation,
        published: published.clone(),
        instruments: instruments.clone(),
        logs: logs::asks_for_programs(&settings.log_level),
    })?;
    let handle = Handle::new(commands.clone(), published, meters, events, operations, instruments, monitor.monitor());
    Ok(RunningEngine { handle, commands, thread, monitor, _watches: watches })
}

impl<M: DataPlane> Engine<M> {
    /// Takes over what the kernel holds and brings it to what the store and the files ask for. Nothing that steers is
    /// removed before both were read. Returns for each look at files whether it was taken in.
    pub(super) fn begin(&mut self, looks: Vec<Vec<FileEvent>>) -> Result<Vec<bool>> {
        let came = Timestamp::now();
        let held = self.machine.read().context("reading the tables")?;
        let adopted = !held.services.is_empty();
        let nameless = self.nameless_zeros(&held);
        self.programmed = Programmed::new(self.slots).adopt(self.slots, held);
        let known = self.programmed.ids();
        self.state.reserve(&known.backends, &known.services, &known.nodes);
        self.load_ramps()?;
        let (audit, kept) = Audit::load(&self.store)?;
        self.audit = audit;
        self.events.restore(kept);
        self.adopt_zeros()?;
        if self.adopts && self.state.service_count() == 0 {
            self.adopt_services(&looks)?;
        }
        let taken_in = looks.iter().map(|events| self.documents(events).is_ok()).collect();
        self.name_zeros(&nameless)?;
        self.reconcile()?;
        self.forget_undone();
        let mut records = self.load_proofs(adopted)?;
        let boot = clock::boot_id().into_bytes();
        let has_steered = self.store.get_extra(BOOT)?.as_ref() == Some(&boot);
        if !has_steered {
            records.push((BOOT.to_owned(), Some(boot)));
        }
        if !records.is_empty() {
            self.keep(records);
        }
        // An agent that finds no tables, and that of this store has steered since the boot, comes after a loss.
        if adopted || has_steered {
            self.tell_absent(came);
        }
        self.load_operations()?;
        self.readiness = AgentReadiness::Ready;
        self.publish();
        let message = if adopted { "took over the tables of an earlier agent" } else { "began with empty tables" };
        self.note(if adopted { EventKind::Adopted } else { EventKind::AgentStarted }, None, message);
        Ok(taken_in)
    }
}

/// Tables hold ids of one store. Those of another one mean something else: they are only safe to take over when our
/// store gave none out yet, because then ours can begin where those end. And then only when `desired`, the state after
/// store and files, has what they steer: a store that was emptied, or a mistyped directory, would take it away.
pub(super) fn check_identity(
    store: &Store,
    state: &State,
    held: &Held,
    brake: Brake,
    desired: impl FnOnce() -> Result<State>,
) -> Result<()> {
    let Held { store: identity, revision, backends, nodes } = held;
    if *identity == [0; 16] || *identity == store.identity() {
        ensure!(
            brake.accept_older || !is_older(state, *revision),
            "the store in --state-dir is an older copy than what the kernel steers: changes that were made since would be \
             undone. Steering goes on as it is. Bring the newest store back, or start the agent once with --accept-older: \
             what the store and the files do not have is removed, zeros stay"
        );
        return check_addresses(state, backends);
    }
    if backends.is_empty() && nodes.is_empty() {
        return Ok(());
    }
    let gave_none = state.service_count() == 0 && state.nodes().next().is_none();
    ensure!(
        gave_none,
        "the tables in the kernel belong to another store than the one in --state-dir: steering goes on as it is. Give \
         the agent the --state-dir that it had before, or remove the tables with `sluice uninstall --keep-state`"
    );
    if brake.accept_empty || brake.adopt {
        return Ok(());
    }
    let steered: Vec<_> = backends.iter().filter(|(_, backend)| backend.closed & CLOSED_REMOVED == 0).collect();
    let desired = desired()?;
    let wanted: BTreeSet<_> = desired.backends().map(|(_, backend)| Endpoint::new(backend.address, 0)).collect();
    let is_lost = |backend: &BackendEntry| !wanted.contains(&Endpoint::v6(backend.address, backend.port, 0));
    let lost = steered.iter().filter(|(_, backend)| is_lost(backend)).count();
    let zeros = nodes.len() + steered.iter().filter(|(_, backend)| backend.closed & CLOSED_ZERO != 0).count();
    ensure!(
        lost == 0 && zeros == 0,
        "the kernel steers to {} by a store that is not in --state-dir: with the empty one that is there, and the \
         files, {lost} of them would be steered to no longer, and {} would end. Steering goes on as it is. Give the agent \
         the --state-dir that it had before, bring the store back from a backup, name files that bring what is steered \
         (--apply), or start it once with --adopt, which makes services of what the kernel steers, or with \
         --accept-empty, which removes what store and files do not bring",
        plural(steered.len() as u64, "backend"),
        plural(zeros as u64, "zero")
    );
    Ok(())
}

/// Whether the tables hold what a later revision asked for. Both count on from the low half of a revision.
fn is_older(state: &State, revision: u32) -> bool {
    revision != 0 && (revision.wrapping_sub(state.revision() as u32) as i32) > 0
}

/// That no backend of the store is another one in the tables that are its own.
fn check_addresses(state: &State, backends: &[(u32, BackendEntry)]) -> Result<()> {
    for (id, held) in backends {
        let Some((service, backend)) = state.backend(BackendId(*id)) else { continue };
        let wanted = Endpoint::new(backend.address, 0);
        ensure!(
            (held.address, held.port) == (wanted.address, wanted.port),
            "the kernel holds another address for backend {}/{} than the store: the store is an older copy than the \
             tables. Steering goes on as it is; remove the tables with `sluice uninstall --keep-state` and start the \
             agent again",
            service.name,
            backend.name
        );
    }
    Ok(())
}

/// The state after the store and the files that were found, as far as they can be applied.
fn desired(store: &Store, state: &State, found: &[Vec<FileEvent>]) -> Result<State> {
    let (mut reconciler, mut state) = (Reconciler::default(), state.clone());
    for events in found {
        let applied = |file: &Path| store.applied(file);
        state = reconciler.handle(events, applied, &state, &Excluded::new(), Timestamp::now())?.state;
    }
    Ok(state)
}

/// As many open files as the system allows: a look at a drain opens every network namespace, and each caller takes one.
fn raise_limit() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!("the limit of open files stays as it is: {error}");
    }
}

fn kernel_config(settings: &Settings) -> kernel::Config {
    let limits = settings.limits;
    kernel::Config {
        bpffs: settings.bpffs.clone(),
        cgroup: settings.cgroup.clone(),
        accept_move: settings.brake.accept_move,
        mark: settings.mark,
        sizes: Sizes {
            services: limits.services,
            backends: limits.backends,
            nodes: limits.nodes,
            frontends: limits.frontends,
            slots: settings.max_slots,
        },
    }
}

fn spawn<M: DataPlane + Send + 'static>(steering: Engine<M>, requests: Receiver<Command>) -> Result<JoinHandle<()>> {
    thread::Builder::new()
        .name("steering".into())
        .spawn(move || steering.run(&requests))
        .context("starting the steering thread")
}
