//! How programs come onto the kernel: in several ways, of which one that this kernel refuses takes no other down. And how
//! they stay there.

pub mod cgroup;
mod ears;
pub mod keeper;
mod query;
mod tracing;

use std::{os::fd::AsRawFd, path::Path};

use anyhow::{Context, Result};
use sluice_common::verdict::Program;

pub use self::query::maps_of;
use self::tracing::Tracepoint;
use super::{object::Object, sys};

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Calls of the processes of a cgroup, by `enum bpf_attach_type`.
    Cgroup(u32),
    /// A tracepoint of the kernel, with the types of its arguments.
    Tracepoint(&'static str),
    /// The beginning of a function of the kernel, with the types of its arguments.
    Function(&'static str),
}

/// What each program is attached to.
pub const fn hook(program: Program) -> Hook {
    match program {
        Program::SockOps => Hook::Cgroup(3),
        Program::Connect4 => Hook::Cgroup(10),
        Program::Connect6 => Hook::Cgroup(11),
        Program::Sendmsg4 => Hook::Cgroup(14),
        Program::Sendmsg6 => Hook::Cgroup(15),
        Program::Recvmsg4 => Hook::Cgroup(19),
        Program::Recvmsg6 => Hook::Cgroup(20),
        Program::Getpeername4 => Hook::Cgroup(29),
        Program::Getpeername6 => Hook::Cgroup(30),
        Program::SockRelease => Hook::Cgroup(34),
        Program::Turn => Hook::Tracepoint("tcp_probe"),
        Program::Keepalive => Hook::Function("tcp_write_wakeup"),
    }
}

/// A program that the agent can do without.
pub enum Attachment {
    /// Attached while somebody asks for it, and for as long as the agent lives.
    Tracepoint(Tracepoint),
    /// This kernel does not have what it takes.
    Absent(anyhow::Error),
}

impl Attachment {
    /// A program of a tracepoint or of a function of the kernel, loaded.
    pub fn tracepoint(object: &mut Object, program: Program) -> Self {
        object.program(program).map_or_else(Self::Absent, |program| Self::Tracepoint(Tracepoint::new(program)))
    }

    /// Attaches what is not attached yet. What is absent stays so, and that is no error.
    ///
    /// # Errors
    /// When the kernel refuses a link.
    pub fn attach(&mut self) -> Result<()> {
        match self {
            Self::Tracepoint(tracepoint) => tracepoint.attach(),
            Self::Absent(_) => Ok(()),
        }
    }

    pub fn is_attached(&self) -> bool {
        match self {
            Self::Tracepoint(tracepoint) => tracepoint.is_attached(),
            Self::Absent(_) => false,
        }
    }

    pub fn detach(&mut self) {
        match self {
            Self::Tracepoint(tracepoint) => tracepoint.detach(),
            Self::Absent(_) => {}
        }
    }
}

/// A program on a hook of the cgroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookEntry {
    pub program: Program,
    pub id: u32,
    pub name: String,
    /// Whether it is under the link that is pinned for the hook.
    pub is_ours: bool,
}

/// What runs on each of our hooks of a cgroup, in the order in which it runs. `bpffs`: where our links are pinned.
///
/// # Errors
/// When there is no such cgroup, or the kernel does not say.
pub fn on_hooks(cgroup: &Path, bpffs: &Path) -> Result<Vec<Vec<HookEntry>>> {
    let cgroup = cgroup::open(cgroup)?;
    let mut hooks = Vec::new();
    for program in Program::ALL.iter().copied() {
        let Hook::Cgroup(attach_type) = hook(program) else { continue };
        let ids = query::programs_on(cgroup.as_raw_fd(), attach_type).with_context(|| program.name())?;
        let pinned = sys::get_pinned(&bpffs.join("links").join(program.name()));
        let ours = pinned.and_then(|link| sys::cgroup_link_info(&link)).map_or(0, |info| info.program_id);
        let entry = |id| HookEntry { program, id, name: keeper::name(id), is_ours: id == ours };
        hooks.push(ids.into_iter().map(entry).collect());
    }
    Ok(hooks)
}
