//! The observed programs: for as long as somebody watches they stand in for those that choose a backend, under the same
//! links, on the same tables.
//!
//! Nothing of them is pinned. When an agent is killed while somebody watches they steer on by themselves, as right as the
//! others and a little slower, until the next agent replaces the programs in place as it does at every start.
#![allow(unsafe_code)]

use std::{fs::File, io, os::fd::AsRawFd, ptr, thread, time::Duration};

use anyhow::{Context, Result};
use sluice_common::{
    decision::{DecisionFilter, DecisionRecord},
    registry::{DECISION_FILTER, DECISIONS, DECISIONS_LOST},
    verdict::Program,
};

use super::{
    Config,
    attach::{Attachment, cgroup::Hooks},
    memory::Window,
    object::Object,
    pins::Directory,
    ring::{Losses, Ring},
    sys,
};

/// What it takes to put the observed programs in place, and the others back.
pub struct Observation {
    pub(super) config: Config,
    pub(super) directory: Directory,
    pub(super) cgroup: File,
    /// The programs that are in place while nobody watches.
    pub(super) usual: Attachment,
}

/// The observed programs at work.
pub struct ObservedPrograms {
    decisions: Ring<DecisionRecord>,
    filter: Window<DecisionFilter>,
    lost: Losses,
}

impl Observation {
    /// Loads the observed programs and puts them in place: they tell nothing yet. With `logs` the process logs what they
    /// say of themselves, for as long as it lives.
    ///
    /// # Errors
    /// When the kernel refuses them; the usual ones are in place then.
    pub fn begin(&mut self, logs: bool) -> Result<ObservedPrograms> {
        let mut object = Object::observed(&self.config, |table| self.directory.map(table.name), logs)?;
        // SAFETY: `DecisionRecord`s are integers, and all that the programs write there.
        let decisions = unsafe { Ring::new(&mut object, &DECISIONS.spec) }?;
        let filter = Window::whole(&object, &DECISION_FILTER)?;
        let observed = ObservedPrograms { decisions, filter, lost: Losses::map(&object, &DECISIONS_LOST)? };
        observed.ask(&DecisionFilter::OFF);
        let hooks = Hooks::load(&mut object, &self.directory, &self.cgroup, &Program::CHOOSING)?;
        if logs {
            follow_log(&mut object)?;
        }
        if let Err(error) = hooks.attach() {
            self.end(observed).context("putting the usual programs back")?;
            return Err(error.context("putting the observed programs in place"));
        }
        Ok(observed)
    }

    /// Puts the usual programs back. The observed ones go when the last call in them has ended.
    ///
    /// # Errors
    /// When the kernel refuses a link: the observed programs go on under it, and steer as the others would.
    pub fn end(&mut self, observed: ObservedPrograms) -> Result<()> {
        observed.ask(&DecisionFilter::OFF);
        self.usual.attach()
    }
}

impl ObservedPrograms {
    /// Which decisions are told from now on.
    pub fn ask(&self, filter: &DecisionFilter) {
        if let Some(at) = self.filter.at(0) {
            // SAFETY: live mapping. A program in this moment may see half of it: whoever watches looks at each record again.
            unsafe { ptr::write_volatile(at, *filter) };
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
