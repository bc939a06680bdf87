//! Programs on the cgroup: new links are pinned, existing ones get the new program in place.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramFd;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use sluice_common::verdict::Program;

use super::{Hook, hook};
use crate::kernel::{object::Object, pins::Directory, sys};

/// The programs of a cgroup, accepted by the verifier.
pub struct Hooks {
    directory: Directory,
    cgroup: File,
    /// In the order in which they are attached.
    programs: Vec<(Program, u32, ProgramFd)>,
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

impl Hooks {
    /// `programs` in the order in which they are to be attached; those that are no cgroup's are left out.
    ///
    /// # Errors
    /// When the kernel refuses one of them: half of them would steer what nobody follows.
    pub fn load(object: &mut Object, directory: &Directory, cgroup: &File, programs: &[Program]) -> Result<Self> {
        let wanted = programs;
        let mut programs = Vec::new();
        for &program in wanted {
            match hook(program) {
                Hook::Cgroup(attach_type) => programs.push((program, attach_type, object.program(program)?)),
                Hook::Tracepoint(_) => {}
            }
        }
        let cgroup = cgroup.try_clone().context("duplicating a descriptor")?;
        Ok(Self { directory: directory.clone(), cgroup, programs })
    }

    /// Lets go of all but these; they stay attached where they are.
    pub fn keep(&mut self, programs: &[Program]) {
        self.programs.retain(|(program, ..)| programs.contains(program));
    }

    /// Brings every program onto the cgroup. A link that was on another cgroup, or on one that is gone, is replaced: the
    /// new one is there before the old one goes.
    ///
    /// # Errors
    /// When the kernel refuses a link.
    pub fn attach(&self) -> Result<()> {
        let id = self.cgroup.metadata()?.ino();
        for (program, attach_type, loaded) in &self.programs {
            self.attach_one(id, program.name(), *attach_type, loaded.as_fd().as_raw_fd())
                .with_context(|| program.name())?;
        }
        Ok(())
    }

    fn attach_one(&self, id: u64, name: &str, attach_type: u32, program: RawFd) -> Result<()> {
        let pin = self.directory.link(name);
        // No dot: bpffs reserves names with one.
        let fresh = self.directory.link(&format!("{name}_new"));
        // An agent that was killed below left it.
        let _ = fs::remove_file(&fresh);
        match sys::get_pinned(&pin) {
            Ok(link) if is_on(&link, id) => match sys::link_update(&link, program) {
                Ok(()) => return Ok(()),
                // The cgroup went away in this moment.
                Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
                Err(error) => return Err(error).context("replacing the program"),
            },
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
        }
        let link = sys::cgroup_link(self.cgroup.as_raw_fd(), program, attach_type).context("linking")?;
        sys::pin(&link, &fresh).context("pinning")?;
        fs::rename(&fresh, &pin).with_context(|| format!("moving the pin to {}", pin.display()))
    }
}

/// Whether a link still is on the cgroup with this id; 0 is one that is gone.
fn is_on(link: &OwnedFd, id: u64) -> bool {
    sys::cgroup_link_info(link).is_ok_and(|info| info.cgroup_id == id)
}
