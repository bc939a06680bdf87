//! How programs come onto the kernel: in several ways, of which one that this kernel refuses takes no other down.

pub mod cgroup;
mod tracing;

use anyhow::Result;
use sluice_common::verdict::Program;

use self::{cgroup::Hooks, tracing::Tracepoint};
use super::{object::Object, pins::Directory};

/// What a program is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Calls of the processes of a cgroup, by `enum bpf_attach_type`.
    Cgroup(u32),
    /// A tracepoint of the kernel, with the types of its arguments.
    Tracepoint(&'static str),
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
    }
}

/// Programs that are attached together.
pub enum Attachment {
    /// Their links are pinned: they go on when the agent ends.
    Cgroup(Hooks),
    /// Attached while somebody asks for it, and for as long as the agent lives.
    Tracepoint(Tracepoint),
    /// This kernel does not have what it takes.
    Absent(anyhow::Error),
}

impl Attachment {
    /// The programs of a cgroup, loaded.
    pub fn cgroup(object: &mut Object, directory: &Directory, cgroup: &std::fs::File) -> Self {
        Hooks::load(object, directory, cgroup, &Program::ORDER).map_or_else(Self::Absent, Self::Cgroup)
    }

    /// A program of a tracepoint, loaded.
    pub fn tracepoint(object: &mut Object, program: Program) -> Self {
        object.program(program).map_or_else(Self::Absent, |program| Self::Tracepoint(Tracepoint::new(program)))
    }

    /// Of the programs of a cgroup those alone that are among these.
    pub fn only(mut self, programs: &[Program]) -> Self {
        if let Self::Cgroup(hooks) = &mut self {
            hooks.keep(programs);
        }
        self
    }

    /// That the agent is of no use without it.
    ///
    /// # Errors
    /// Why it is absent.
    pub fn require(self) -> Result<Self> {
        match self {
            Self::Absent(reason) => Err(reason),
            Self::Cgroup(_) | Self::Tracepoint(_) => Ok(self),
        }
    }

    /// Attaches what is not attached yet; where an earlier agent's programs are, they are replaced in place. What is absent
    /// stays so, and that is no error.
    ///
    /// # Errors
    /// When the kernel refuses a link.
    pub fn attach(&mut self) -> Result<()> {
        match self {
            Self::Cgroup(hooks) => hooks.attach(),
            Self::Tracepoint(tracepoint) => tracepoint.attach(),
            Self::Absent(_) => Ok(()),
        }
    }

    /// Detaches what lives no longer than the agent; the cgroup's programs stay until `sluice uninstall`.
    pub fn detach(&mut self) {
        match self {
            Self::Tracepoint(tracepoint) => tracepoint.detach(),
            Self::Cgroup(_) | Self::Absent(_) => {}
        }
    }
}
