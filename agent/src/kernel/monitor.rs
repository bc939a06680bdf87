//! The observed programs: for as long as somebody watches they stand in for those that choose a backend, under the same
//! links, on the same tables.
//!
//! Nothing of them is pinned. When an agent is killed while somebody watches they steer on by themselves, as right as the
//! others and a little slower, and tell nothing more once the [`LEASE`] is over, until the next agent replaces the programs
//! in place as it does at every start.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd, ptr, sync::Arc, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use sluice_common::{
    decision::{DecisionFilter, DecisionRecord, LEASE},
    registry::{self, DECISION_FILTER, DECISIONS, DECISIONS_LOST, Keep, Spec},
    verdict::Program,
};

use super::{
    Config,
    attach::cgroup::{Hooks, Links},
    memory::Window,
    object::Object,
    pins::{self, Directory},
    ring::{Losses, Ring},
    sys::{self, Map},
};
use crate::host::clock;

/// What it takes to put the observed programs in place, and the others back.
pub struct Observation {
    config: Config,
    directory: Directory,
    links: Arc<Links>,
    /// The tables that the agent writes, by their ids in the kernel.
    tables: Vec<(Spec, u32)>,
    /// The programs that choose a backend while nobody watches.
    usual: Hooks,
    is_in_place: bool,
}

/// The observed programs at work.
pub struct ObservedPrograms {
    decisions: Ring<DecisionRecord>,
    filter: Window<DecisionFilter>,
    /// What it holds, and until when (CLOCK_MONOTONIC ns).
    asked: DecisionFilter,
    until: u64,
    lost: Losses,
}

impl Observation {
    /// `usual`: the programs of `object` for this cgroup.
    pub(super) fn new(
        config: &Config,
        directory: &Directory,
        links: Arc<Links>,
        object: &Object,
        usual: &Hooks,
    ) -> Result<Self> {
        let pinned = registry::ALL.iter().filter(|table| table.keep == Keep::Pinned);
        let tables = pinned.map(|table| Ok((*table, id(&object.map(table)?, table)?)));
        Ok(Self {
            config: config.clone(),
            directory: directory.clone(),
            links,
            tables: tables.collect::<Result<_>>()?,
            usual: usual.only(&Program::CHOOSING)?,
            is_in_place: false,
        })
    }

    /// Loads the observed programs and puts them in place: they tell nothing yet. With `logs` the process logs what they
    /// say of themselves, for as long as it lives.
    ///
    /// # Errors
    /// When a table is not pinned any more, or the kernel refuses the programs. The usual ones are in place then, unless
    /// [`Self::is_in_place`] says otherwise.
    pub fn begin(&mut self, logs: bool) -> Result<ObservedPrograms> {
        self.check(|table| pins::pinned(&self.directory.map(table.name)))?;
        let mut object = Object::observed(&self.config, |table| self.directory.map(table.name), logs)?;
        self.check(|table| object.map(table).map(Some))?;
        // SAFETY: `DecisionRecord`s are integers, and all that the programs write there.
        let decisions = unsafe { Ring::new(&mut object, &DECISIONS.spec) }?;
        let filter = Window::whole(&object, &DECISION_FILTER)?;
        let lost = Losses::map(&object, &DECISIONS_LOST)?;
        let hooks = Hooks::load(&mut object, &Program::CHOOSING)?;
        if logs {
            follow_log(&mut object)?;
        }
        self.is_in_place = true;
        if let Err(error) = self.links.put(&hooks) {
            self.end().context("putting the usual programs back")?;
            return Err(error.context("putting the observed programs in place"));
        }
        Ok(ObservedPrograms { decisions, filter, asked: DecisionFilter::OFF, until: 0, lost })
    }

    /// Whether observed programs are, or may be, where the usual ones belong.
    pub fn is_in_place(&self) -> bool {
        self.is_in_place
    }

    /// Puts the usual programs back. The observed ones go when the last call in them has ended.
    ///
    /// # Errors
    /// When the kernel refuses a link: the observed programs go on under it, and steer as the others would.
    pub fn end(&mut self) -> Result<()> {
        if self.is_in_place {
            self.links.put(&self.usual)?;
            self.is_in_place = false;
        }
        Ok(())
    }

    /// # Errors
    /// When a table is missing, or another one than the agent writes: these programs would steer by an empty one.
    fn check(&self, find: impl Fn(&Spec) -> Result<Option<Map>>) -> Result<()> {
        for (table, wanted) in &self.tables {
            let found = find(table)?.map(|found| id(&found, table)).transpose()?;
            ensure!(
                found == Some(*wanted),
                "somebody has removed or replaced the pin {}, and it is not back yet: ask again in a moment",
                self.directory.map(table.name).display()
            );
        }
        Ok(())
    }
}

impl ObservedPrograms {
    /// Which decisions are told from now on, for [`LEASE`]: who asks more often than that is told without a gap.
    pub fn ask(&mut self, filter: &DecisionFilter) {
        let now = clock::monotonic_ns();
        // Each call reads it, from a cache line that a write takes away: a lease is renewed when a tenth of it is over.
        if *filter == self.asked && now + LEASE / 10 * 9 < self.until {
            return;
        }
        (self.asked, self.until) = (*filter, now + LEASE);
        if let Some(at) = self.filter.at(0) {
            // SAFETY: live mapping. A program in this moment may see half of it: whoever watches looks at each record again.
            unsafe { ptr::write_volatile(at, DecisionFilter { until: self.until, ..*filter }) };
        }
    }

    /// See [`Ring::wait`].
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Vec<DecisionRecord>> {
        self.decisions.wait(Some(timeout))
    }

    /// Decisions that found no room, since these programs were loaded.
    pub fn lost(&self) -> u64 {
        self.lost.count()
    }
}

fn id(map: &Map, table: &Spec) -> Result<u32> {
    Ok(map.info().with_context(|| format!("asking which table {} is", table.name))?.id)
}

/// Hands the programs' messages to the log of this process, on a thread that sleeps while there are none.
fn follow_log(object: &mut Object) -> Result<()> {
    let mut logger = object.take_log()?;
    let follow = move || {
        while sys::wait_readable(logger.as_raw_fd()).is_ok() {
            logger.flush();
        }
    };
    thread::Builder::new().name("program log".into()).spawn(follow).context("starting the thread of messages")?;
    Ok(())
}
