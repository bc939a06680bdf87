//! Turn time: the program that measures it, attached while it is asked for, and what it found.
//!
//! Nothing of it is pinned: a measurement ends with the agent that asked for it, and its counts begin with the next one.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    ptr,
    sync::Arc,
};

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use sluice_common::watch::Turns;

use super::{
    memory::{Window, beyond, sized},
    object::Object,
    sys,
};
use crate::model::BackendId;

/// The program over every segment that the host receives; see [`super::Watches::set_measured`] for whose time counts.
pub struct TurnTimes {
    /// `None`: this kernel does not have what it takes.
    program: Option<ProgramFd>,
    link: Option<OwnedFd>,
}

impl TurnTimes {
    pub(super) fn new(program: Option<ProgramFd>) -> Self {
        Self { program, link: None }
    }

    /// Attaches or detaches the program. While it is attached every TCP segment that the host receives costs some
    /// nanoseconds. Where it cannot be measured, nothing happens.
    ///
    /// # Errors
    /// When the kernel refuses the link.
    pub fn set(&mut self, on: bool) -> Result<()> {
        match (&self.program, on) {
            (Some(program), true) if self.link.is_none() => {
                let link =
                    sys::trace_link(program.as_fd().as_raw_fd()).context("attaching the program of turn time")?;
                self.link = Some(link);
            }
            (_, false) => self.link = None,
            _ => {}
        }
        Ok(())
    }
}

/// TURNS, mapped.
#[derive(Clone)]
pub(super) struct TurnTable(Arc<Window<Turns>>);

impl TurnTable {
    pub(super) fn map(object: &Object) -> Result<Self> {
        let (map, length) = sized(object, "TURNS")?;
        Ok(Self(Arc::new(Window::new(&map, 0, length)?)))
    }

    pub(super) fn read(&self, backend: BackendId) -> Turns {
        let at = self.0.at(backend.0 as usize);
        // SAFETY: live mapping; every field is an aligned word that programs add to, read by whole words.
        at.map_or_else(Turns::default, |at| unsafe { ptr::read_volatile(at) })
    }

    pub(super) fn forget(&self, backend: BackendId) -> Result<()> {
        let at = self.0.at(backend.0 as usize).with_context(|| beyond("TURNS", backend.0))?;
        // SAFETY: live mapping; no connection refers to this backend any more.
        unsafe { ptr::write_bytes(at, 0, 1) };
        Ok(())
    }
}
