//! A program on a tracepoint, or at the beginning of a function of the kernel: its link is not pinned, so that it ends with the agent that asked for it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;

use crate::kernel::sys;

pub struct Tracepoint {
    program: ProgramFd,
    link: Option<OwnedFd>,
}

impl Tracepoint {
    pub fn new(program: ProgramFd) -> Self {
        Self { program, link: None }
    }

    pub fn attach(&mut self) -> Result<()> {
        if self.link.is_none() {
            self.link = Some(sys::trace_link(self.program.as_fd().as_raw_fd()).context("attaching to the kernel")?);
        }
        Ok(())
    }

    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    pub fn detach(&mut self) {
        self.link = None;
    }
}
