//! The only owner of maps, programs, links and pins. Everything else in the agent speaks of [`MapOp`]s and reads
//! through [`Meters`].

mod attach;
mod batch;
pub mod btf;
mod census;
mod drain;
pub mod end_of_stream;
mod errors;
mod facts;
pub mod features;
mod flows;
mod frontends;
pub mod gauges;
mod memory;
mod meters;
pub mod monitor;
mod moved;
mod object;
mod pins;
mod programs;
pub mod readings;
mod repin;
mod ring;
mod segment;
mod signals;
pub mod sock_diag;
pub mod sockets;
mod streaks;
mod sys;
mod turns;
mod upgrade;
mod walk;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use sluice_common::{
    drain::Draining,
    registry::{DRAINING, SIGNALS_LOST},
    tables::{BackendEntry, Counters, TableWord},
    verdict::Program,
};

pub use attach::{HookEntry, keeper::Keeper, on_hooks};
pub use drain::Passes;
pub use meters::Meters;
pub use monitor::{Observation, ObservedPrograms};
pub use pins::uninstall;
pub use ring::Waker;
pub use signals::Signals;
pub use sluice_common::registry::Sizes;
pub use streaks::StreakTable;

use crate::{
    model::BackendId,
    plan::{DataPlane, Entries, MapOp},
};
use attach::{
    Attachment,
    cgroup::{Links, OwnedCgroup},
};
use flows::FlowTable;
use frontends::Frontends;
use memory::MappedTables;
use object::Object;
use programs::Programs;
use ring::Losses;
use turns::TurnTable;
use upgrade::Upgrade;

/// Where and how the data plane is installed.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory on a bpffs that holds the pins.
    pub bpffs: PathBuf,
    /// Directory of the cgroup (v2) whose processes are steered.
    pub cgroup: PathBuf,
    /// Whether programs that steer another cgroup may be taken to this one.
    pub accept_move: bool,
    /// Sockets with this SO_MARK pass untouched; 0 is none.
    pub mark: u32,
    pub sizes: Sizes,
}

/// What the tables hold before an agent takes them over.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Identity of the store whose ids these are; all zero when the tables are new.
    pub store: [u8; 16],
    /// The low half of that store's revision, see `Meta`; 0 when it is not known.
    pub revision: u32,
    pub backends: Vec<(u32, BackendEntry)>,
    /// Closed nodes, with the reasons.
    pub nodes: Vec<(u32, u32)>,
}

/// The data plane of one cgroup: pinned, so that it goes on when this value is dropped.
pub struct Kernel {
    tables: Arc<MappedTables>,
    frontends: Frontends,
    draining: sys::Hash<u32, Draining>,
    streaks: StreakTable,
    turns: TurnTable,
    turn_times: Attachment,
    /// Attached as long as this agent lives.
    _keepalive: Attachment,
    /// Backends whose turn times are measured.
    measured: BTreeSet<u32>,
    meters: Arc<Meters>,
    /// Until somebody takes them.
    passes: Option<Passes>,
    signals: Option<Signals>,
    observation: Option<Observation>,
    links: Arc<Links>,
    keeper: Option<Keeper>,
    /// Programs that an earlier agent's tables were there without.
    absent: Vec<Program>,
    /// Held as long as this agent owns the pins.
    _lock: Option<pins::Lock>,
}

impl Kernel {
    /// Loads the programs, adopting tables and links that an earlier agent left.
    ///
    /// The order makes every prefix safe: tables first, then the hooks that follow and translate, last those that
    /// steer. Links that exist get the new program in place, with no instant in between. What an agent of the former
    /// version has left is brought to this one, see [`upgrade`]. Nothing of it is changed unless `is_ours` takes the
    /// tables, by what they hold.
    ///
    /// # Errors
    /// A sentence that says what is missing and what to do; whatever was steered before goes on.
    pub fn open(config: &Config, is_ours: impl FnOnce(&Held) -> Result<()>) -> Result<Self> {
        let directory = pins::Directory::open(&config.bpffs)?;
        let lock = directory.lock()?;
        let is_new = directory.is_new()?;
        let mut installed = Self::install(&directory, config, is_ours);
        match &mut installed {
            Ok(kernel) => kernel._lock = Some(lock),
            // Nothing half attached stays behind.
            Err(_) if is_new => {
                if let Err(error) = directory.remove() {
                    tracing::warn!("what was begun could not be removed: {error:#}");
                }
            }
            Err(_) => {}
        }
        installed
    }

    fn install(
        directory: &pins::Directory,
        config: &Config,
        is_ours: impl FnOnce(&Held) -> Result<()>,
    ) -> Result<Self> {
        let cgroup = OwnedCgroup::take(&config.cgroup)?;
        repin::tables(directory)?;
        directory.check_version()?;
        if !config.accept_move {
            moved::check(directory, cgroup.id()?)?;
        }
        let upgrade = Upgrade::find(directory)?;
        directory.check_shapes(&config.sizes, |table| upgrade.pin(table))?;
        let mut object = Object::load(config, |table| upgrade.pin(table))?;
        let tables = Arc::new(MappedTables::map(&object)?);
        is_ours(&Held {
            store: tables.store_identity(),
            revision: tables.revision(),
            backends: tables.backends(),
            nodes: tables.nodes(),
        })?;
        let frontends = Frontends::adopt(&object)?;
        let draining = object.hash(&DRAINING)?;
        let (streaks, lost) = (StreakTable::map(&object)?, Losses::map(&object, &SIGNALS_LOST)?);
        streaks.measure_nothing();
        let turns = TurnTable::map(&object)?;
        let signals = Some(signals::open(&mut object)?);
        let mut programs = Programs::load(&mut object, &config.cgroup)?;
        upgrade.finish(&tables)?;
        if let Err(error) = programs.keepalive.attach() {
            tracing::warn!("idle connections with keep-alive probes may wait for the end of a drain: {error:#}");
        }
        if programs.keepalive.is_attached() {
            programs.passes.remember();
        }
        let attached = Links::attach(directory, cgroup, &config.cgroup, &programs.hooks);
        let (links, absent) = attached.with_context(|| format!("attaching to {}", config.cgroup.display()))?;
        let links = Arc::new(links);
        let observation = Observation::new(config, directory, links.clone(), &object, &programs.hooks)?;
        let keeper = Keeper::new(directory, &object, links.clone(), &config.cgroup)?;
        let flows = FlowTable::open(&object, tables.clone())?;
        let meters = Meters::new(tables.clone(), programs.census, streaks.clone(), lost, turns.clone(), flows);
        let meters = Arc::new(meters);
        Ok(Self {
            tables,
            frontends,
            draining,
            streaks,
            turns,
            turn_times: programs.turns,
            _keepalive: programs.keepalive,
            measured: BTreeSet::new(),
            meters,
            passes: Some(programs.passes),
            signals,
            observation: Some(observation),
            links,
            keeper: Some(keeper),
            absent,
            _lock: None,
        })
    }

    /// A read-only view for any thread.
    pub fn meters(&self) -> Arc<Meters> {
        self.meters.clone()
    }

    /// The passes over the connections of draining backends: for one thread.
    pub fn take_passes(&mut self) -> Option<Passes> {
        self.passes.take()
    }

    /// The streaks of backends, and the limits at which they signal.
    pub fn streaks(&self) -> StreakTable {
        self.streaks.clone()
    }

    /// The signals of the programs: for one thread.
    pub fn take_signals(&mut self) -> Option<Signals> {
        self.signals.take()
    }

    /// What shows decisions as they happen: for one thread.
    pub fn take_observation(&mut self) -> Option<Observation> {
        self.observation.take()
    }

    /// What keeps the programs attached and the pins in place: for one thread.
    pub fn take_keeper(&mut self) -> Option<Keeper> {
        self.keeper.take()
    }

    /// Programs that were not attached when this agent came.
    pub fn absent(&self) -> &[Program] {
        &self.absent
    }

    /// Begins or ends the measuring of a backend's turn times.
    ///
    /// # Errors
    /// When the kernel cannot measure: what was asked for is not so.
    fn measure(&mut self, backend: u32, measured: bool) -> Result<()> {
        if measured {
            self.turn_times.attach()?;
            self.measured.insert(backend);
        }
        self.streaks.set_measured(BackendId(backend), measured)?;
        if !measured && self.measured.remove(&backend) && self.measured.is_empty() {
            self.turn_times.detach();
        }
        Ok(())
    }

    /// Whose ids the tables hold from now on.
    pub fn set_store_identity(&self, identity: [u8; 16]) {
        self.tables.set_store_identity(identity);
    }
}

impl DataPlane for Kernel {
    fn run(&mut self, op: &MapOp) -> Result<()> {
        match op {
            MapOp::SetNode { node, closed } => self.tables.set_node(*node, *closed),
            MapOp::PutBackend { backend, value } => self.tables.put_backend(*backend, value),
            MapOp::CloseBackend { backend, closed } => self.tables.close_backend(*backend, *closed),
            MapOp::ForgetBackend { backend } => {
                // First: an entry of BACKENDS that is there keeps its id from being given out.
                self.streaks.forget(BackendId(*backend))?;
                self.turns.forget(BackendId(*backend))?;
                self.measure(*backend, false)?;
                self.tables.forget_backend(*backend)
            }
            MapOp::BeginService { service, start } => self.tables.begin_service(*service, *start),
            MapOp::WriteTable { base, entries } => self.tables.write_slots(*base, entries),
            MapOp::Flip { service, table, .. } => self.tables.flip(*service, *table),
            MapOp::ForgetService { service } => self.tables.flip(*service, TableWord(0)),
            MapOp::PutFrontend { frontend, service } => self.frontends.put(frontend, *service),
            MapOp::RemoveFrontend { frontend } => self.frontends.remove(frontend),
            MapOp::AddLost { backend, established, connecting } => {
                self.tables.add_lost(*backend, *established, *connecting)
            }
            MapOp::SetMeasured { backend, measured } => self.measure(*backend, *measured),
            MapOp::SetDraining { backend, draining: Some(draining) } => {
                self.draining.put(backend, draining).context("writing DRAINING")
            }
            MapOp::SetDraining { backend, draining: None } => match self.draining.remove(backend) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error).context("writing DRAINING"),
                _ => Ok(()),
            },
        }
    }

    fn read(&self) -> Result<Entries> {
        Ok(Entries {
            frontends: self.frontends.entries(),
            services: self.tables.services()?,
            backends: self.tables.backends(),
            nodes: self.tables.nodes(),
        })
    }

    fn slots(&self, table: TableWord) -> Result<Vec<u32>> {
        self.tables.slots(table.base(), table.length())
    }

    fn counters(&self, ids: &[BackendId]) -> Result<Vec<Counters>> {
        self.tables.counters(ids.iter().map(|id| id.0))
    }

    fn counter_table(&self) -> u32 {
        self.tables.counter_table()
    }

    fn saved(&mut self, revision: u64) {
        self.tables.set_revision(revision as u32);
    }

    fn mark(&self) -> u64 {
        self.tables.begin_exact_times()
    }

    fn unattached(&self) -> Vec<Program> {
        self.links.unattached()
    }
}

/// Waits until every program that may have read a table before this call has ended.
///
/// MEMBARRIER_CMD_GLOBAL is `synchronize_rcu()`; programs run in RCU read-side sections. Takes milliseconds. Where the
/// kernel refuses it (nohz_full), or skips it because there is one processor, a second stands in for it: programs run
/// for microseconds.
pub fn wait_for_readers() {
    let has_one = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    if has_one || sys::membarrier_global().is_err() {
        std::thread::sleep(std::time::Duration::from_secs(1));
    }
}
