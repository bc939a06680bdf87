//! Programs on the cgroup. Their links are held by descriptor, so that a pin's removal detaches nothing; new ones are
//! pinned, existing ones get the new program in place.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use sluice_common::verdict::Program;

use super::{Hook, hook, query};
use crate::kernel::{
    object::Object,
    pins::{Directory, Lock, pin_over},
    sys,
};

/// Programs of a cgroup, accepted by the verifier.
pub struct Hooks {
    /// In the order in which they are attached.
    programs: Vec<LoadedProgram>,
}

struct LoadedProgram {
    program: Program,
    attach_type: u32,
    id: u32,
    descriptor: OwnedFd,
}

/// The links of one cgroup.
pub struct Links {
    directory: Directory,
    /// Where the cgroup is found when it has been made anew.
    path: PathBuf,
    held: Mutex<HeldLinks>,
}

struct HeldLinks {
    cgroup: OwnedCgroup,
    /// In the order in which they were attached.
    links: Vec<HeldLink>,
    /// Programs that somebody other than the keeper has found missing since the keeper last looked.
    noticed: BTreeSet<Program>,
}

struct HeldLink {
    /// What belongs under the link.
    loaded: LoadedProgram,
    /// While there is none, or one that is detached, the next [`Links::put_back`] makes it.
    link: Option<OwnedFd>,
}

/// What runs on one hook.
pub struct RunningPrograms {
    pub program: Program,
    /// Id of the program that belongs there.
    pub own: u32,
    /// Ids in the order in which they run; an error when the cgroup is gone.
    pub ids: io::Result<Vec<u32>>,
}

/// A cgroup that no other agent has.
pub struct OwnedCgroup {
    directory: File,
    _lock: Lock,
}

impl OwnedCgroup {
    /// # Errors
    /// When it is none, none of version 2, or another agent's.
    pub fn take(path: &Path) -> Result<Self> {
        let directory = open(path)?;
        let lock = Lock::of(lockable(path, &directory)?, path)?;
        Ok(Self { directory, _lock: lock })
    }

    /// Its number, as links have it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn id(&self) -> Result<u64> {
        Ok(self.directory.metadata().context("looking at the cgroup")?.ino())
    }
}

/// The directory of a cgroup.
///
/// # Errors
/// When it is none, or none of version 2.
pub fn open(path: &Path) -> Result<File> {
    let cgroup = File::open(path).with_context(|| format!("opening the cgroup {}", path.display()))?;
    ensure!(
        statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "{} is not a cgroup (v2) directory: give --cgroup one, as in /sys/fs/cgroup",
        path.display()
    );
    Ok(cgroup)
}

/// What stands for the cgroup `directory` at `path` where agents lock it: a file that root alone can open, so that
/// nobody else can. Where there is none (a root cgroup without a memory controller, a read-only mount), the directory.
///
/// # Errors
/// When no descriptor is left.
fn lockable(path: &Path, directory: &File) -> Result<File> {
    // Nothing is written: that would be an order.
    let open = |name| OpenOptions::new().write(true).open(path.join(name)).ok();
    match open("cgroup.kill").or_else(|| open("memory.reclaim")) {
        Some(file) => Ok(file),
        None => directory.try_clone().context("duplicating a descriptor"),
    }
}

impl Hooks {
    /// `programs` in the order in which they are to be attached; those that are no cgroup's are left out.
    ///
    /// # Errors
    /// When the kernel refuses one of them: half of them would steer what nobody follows.
    pub fn load(object: &mut Object, programs: &[Program]) -> Result<Self> {
        let mut loaded = Vec::new();
        for &program in programs {
            if let Hook::Cgroup(attach_type) = hook(program) {
                let descriptor = object.program(program)?.as_fd().try_clone_to_owned()?;
                let id = query::program_info(&descriptor)?.id;
                loaded.push(LoadedProgram { program, attach_type, id, descriptor });
            }
        }
        Ok(Self { programs: loaded })
    }

    /// Those of them that are among these, once more.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn only(&self, programs: &[Program]) -> Result<Self> {
        let chosen = self.programs.iter().filter(|loaded| programs.contains(&loaded.program));
        Ok(Self { programs: chosen.map(LoadedProgram::again).collect::<Result<_>>()? })
    }
}

impl LoadedProgram {
    fn again(&self) -> Result<Self> {
        let descriptor = self.descriptor.try_clone().context("duplicating a descriptor")?;
        Ok(Self { descriptor, ..*self })
    }
}

impl Links {
    /// Brings every program onto the cgroup. Links that an earlier agent pinned get theirs in place; one that was on another
    /// cgroup, or on one that is gone, is replaced: the new one is there before the old one goes.
    ///
    /// Returns those that were not attached, too.
    ///
    /// # Errors
    /// When the kernel refuses a link.
    pub fn attach(
        directory: &Directory,
        cgroup: OwnedCgroup,
        path: &Path,
        hooks: &Hooks,
    ) -> Result<(Self, Vec<Program>)> {
        let id = cgroup.id()?;
        let mut links = Vec::new();
        for loaded in &hooks.programs {
            let pin = directory.link(loaded.program.name());
            let link = match sys::get_pinned(&pin) {
                Ok(link) => is_on(&link, id).then_some(link),
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
            };
            links.push(HeldLink { loaded: loaded.again()?, link });
        }
        let absent = links.iter().filter(|held| held.link.is_none()).map(|held| held.loaded.program).collect();
        let held = Mutex::new(HeldLinks { cgroup, links, noticed: BTreeSet::new() });
        let links = Self { directory: directory.clone(), path: path.to_owned(), held };
        links.put(hooks)?;
        // The caller tells of them.
        links.held().noticed.clear();
        Ok((links, absent))
    }

    /// Puts programs under the links of their hooks, with no instant without one.
    ///
    /// # Errors
    /// When the kernel refuses a link.
    pub fn put(&self, hooks: &Hooks) -> Result<()> {
        let mut held = self.held();
        held.notice();
        let HeldLinks { cgroup, links, .. } = &mut *held;
        for loaded in &hooks.programs {
            let Some(link) = links.iter_mut().find(|link| link.loaded.program == loaded.program) else { continue };
            link.loaded = loaded.again()?;
            link.put(cgroup, &self.directory).with_context(|| loaded.program.name())?;
        }
        Ok(())
    }

    /// Attaches what is not attached; to the cgroup that was made anew, when the one before is gone.
    ///
    /// # Errors
    /// When there is no such cgroup yet, another agent has it, or the kernel refuses a link.
    pub fn put_back(&self) -> Result<()> {
        let mut held = self.held();
        if held.running().iter().any(|running| running.ids.is_err()) {
            held.cgroup = OwnedCgroup::take(&self.path)?;
            held.links.iter_mut().for_each(|link| link.link = None);
        }
        let missing: Vec<_> = held.running().iter().map(|running| !running.is_attached()).collect();
        let HeldLinks { cgroup, links, .. } = &mut *held;
        for (link, _) in links.iter_mut().zip(missing).filter(|(_, is_missing)| *is_missing) {
            link.put(cgroup, &self.directory).with_context(|| link.loaded.program.name())?;
        }
        Ok(())
    }

    /// For the keeper: what runs on each hook, as the kernel says, and which programs others have found missing since the
    /// last call, though they may be back.
    pub fn look(&self) -> (Vec<RunningPrograms>, BTreeSet<Program>) {
        let mut held = self.held();
        (held.running(), std::mem::take(&mut held.noticed))
    }

    /// For everybody else: programs that do not run. The keeper hears of them.
    pub fn unattached(&self) -> Vec<Program> {
        self.held().notice()
    }

    /// Pins anew the links that are not found where their pins belong.
    ///
    /// # Errors
    /// When a link cannot be pinned.
    pub fn pin_again(&self) -> Result<()> {
        let held = self.held();
        for link in &held.links {
            let pin = self.directory.link(link.loaded.program.name());
            if let Some(link) = link.link.as_ref().filter(|link| !is_pinned(link, &pin)) {
                pin_over(link.as_raw_fd(), &pin)?;
            }
        }
        Ok(())
    }

    /// Paths at which a link is not pinned and should be.
    pub fn unpinned(&self) -> Vec<PathBuf> {
        let held = self.held();
        let pin = |link: &HeldLink| {
            let pin = self.directory.link(link.loaded.program.name());
            (!link.link.as_ref().is_some_and(|link| is_pinned(link, &pin))).then_some(pin)
        };
        held.links.iter().filter_map(pin).collect()
    }

    fn held(&self) -> MutexGuard<'_, HeldLinks> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HeldLinks {
    fn running(&self) -> Vec<RunningPrograms> {
        let cgroup = self.cgroup.directory.as_raw_fd();
        let running = |HeldLink { loaded, .. }: &HeldLink| RunningPrograms {
            program: loaded.program,
            own: loaded.id,
            ids: query::programs_on(cgroup, loaded.attach_type),
        };
        self.links.iter().map(running).collect()
    }

    /// Programs that do not run; the keeper's next look finds them missing, whatever happens before.
    fn notice(&mut self) -> Vec<Program> {
        let running = self.running();
        let missing = running.iter().filter(|running| !running.is_attached()).map(|running| running.program);
        let missing: Vec<_> = missing.collect();
        self.noticed.extend(&missing);
        missing
    }
}

impl HeldLink {
    fn put(&mut self, cgroup: &OwnedCgroup, directory: &Directory) -> Result<()> {
        let program = self.loaded.descriptor.as_raw_fd();
        match self.link.as_ref().map(|link| sys::link_update(link, program)) {
            Some(Ok(())) => return Ok(()),
            // The cgroup went away, or somebody has detached the link.
            Some(Err(error)) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Some(Err(error)) => return Err(error).context("replacing the program"),
            None => {}
        }
        let link = sys::cgroup_link(cgroup.directory.as_raw_fd(), program, self.loaded.attach_type);
        let link = self.link.insert(link.context("linking")?);
        pin_over(link.as_raw_fd(), &directory.link(self.loaded.program.name()))
    }
}

impl RunningPrograms {
    pub fn is_attached(&self) -> bool {
        self.ids.as_ref().is_ok_and(|ids| ids.contains(&self.own))
    }
}

/// Whether a link still is on the cgroup with this id; 0 is one that is gone.
fn is_on(link: &OwnedFd, id: u64) -> bool {
    sys::cgroup_link_info(link).is_ok_and(|info| info.cgroup_id == id)
}

fn is_pinned(link: &OwnedFd, pin: &Path) -> bool {
    let id = |link: &OwnedFd| sys::cgroup_link_info(link).map(|info| info.id);
    let found = sys::get_pinned(pin).and_then(|found| id(&found));
    matches!((id(link), found), (Ok(wanted), Ok(found)) if wanted == found)
}
