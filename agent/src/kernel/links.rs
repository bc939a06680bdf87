//! Programs on the cgroup: new links are pinned, existing ones get the new program in place.

use std::{
    fs::{self, File},
    io::ErrorKind,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use sluice_common::verdict::Program;

use super::{object::Loaded, pins::Directory, sys};

/// Attached in this order: what follows and translates before what steers. Detached in the opposite one.
pub const ORDER: [Program; 10] = [
    Program::SockRelease,
    Program::SockOps,
    Program::Getpeername4,
    Program::Getpeername6,
    Program::Recvmsg4,
    Program::Recvmsg6,
    Program::Sendmsg4,
    Program::Sendmsg6,
    Program::Connect4,
    Program::Connect6,
];

/// The directory of a cgroup.
///
/// # Errors
/// When it is none, or none of version 2.
pub fn cgroup(path: &Path) -> Result<File> {
    let cgroup = File::open(path).with_context(|| format!("opening the cgroup {}", path.display()))?;
    ensure!(
        statfs(path)?.filesystem_type() == CGROUP2_SUPER_MAGIC,
        "{} is not a cgroup (v2) directory: give --cgroup one, as in /sys/fs/cgroup",
        path.display()
    );
    Ok(cgroup)
}

/// Brings every program onto a cgroup. A link that was on another cgroup, or on one that is gone, is replaced: the new
/// one is there before the old one goes.
pub fn attach(directory: &Directory, cgroup: &File, programs: &[(Program, Loaded)]) -> Result<()> {
    let id = cgroup.metadata()?.ino();
    for program in ORDER {
        let (_, loaded) = programs.iter().find(|(name, _)| *name == program).context("a program was not loaded")?;
        attach_one(directory, cgroup, id, program, loaded).with_context(|| program.name())?;
    }
    Ok(())
}

fn attach_one(directory: &Directory, cgroup: &File, id: u64, program: Program, loaded: &Loaded) -> Result<()> {
    let pin = directory.link(program.name());
    // No dot: bpffs reserves names with one.
    let fresh = directory.link(&format!("{}_new", program.name()));
    // An agent that was killed below left it.
    let _ = fs::remove_file(&fresh);
    match sys::get_pinned(&pin) {
        Ok(link) if is_on(&link, id) => match sys::link_update(&link, loaded.fd()) {
            Ok(()) => return Ok(()),
            // The cgroup went away in this moment.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(error) => return Err(error).context("replacing the program"),
        },
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("opening {}", pin.display())),
    }
    let link = sys::cgroup_link(cgroup.as_raw_fd(), loaded.fd(), attach_type(program)).context("linking")?;
    sys::pin(&link, &fresh).context("pinning")?;
    fs::rename(&fresh, &pin).with_context(|| format!("moving the pin to {}", pin.display()))
}

/// Whether a link still is on the cgroup with this id; 0 is one that is gone.
fn is_on(link: &OwnedFd, id: u64) -> bool {
    sys::cgroup_link_info(link).is_ok_and(|info| info.cgroup_id == id)
}

/// `enum bpf_attach_type`.
fn attach_type(program: Program) -> u32 {
    match program {
        Program::SockOps => 3,
        Program::Connect4 => 10,
        Program::Connect6 => 11,
        Program::Sendmsg4 => 14,
        Program::Sendmsg6 => 15,
        Program::Recvmsg4 => 19,
        Program::Recvmsg6 => 20,
        Program::Getpeername4 => 29,
        Program::Getpeername6 => 30,
        Program::SockRelease => 34,
    }
}
