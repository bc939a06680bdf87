//! Turn times: what the program found that measures them while it is attached.
//!
//! Nothing of it is pinned: a measurement ends with the agent that asked for it, and its counts begin with the next one.
#![allow(unsafe_code)]

use std::{ptr, sync::Arc};

use anyhow::{Context, Result};
use sluice_common::{registry::TURNS, streak::Turns};

use super::{
    memory::{Window, beyond},
    object::Object,
};
use crate::model::BackendId;

/// TURNS, mapped.
#[derive(Clone)]
pub(super) struct TurnTable(Arc<Window<Turns>>);

impl TurnTable {
    pub(super) fn map(object: &Object) -> Result<Self> {
        Ok(Self(Arc::new(Window::whole(object, &TURNS)?)))
    }

    pub(super) fn read(&self, backend: BackendId) -> Turns {
        let at = self.0.at(backend.0 as usize);
        // SAFETY: live mapping; every field is an aligned word that programs add to, read by whole words.
        at.map_or_else(Turns::default, |at| unsafe { ptr::read_volatile(at) })
    }

    pub(super) fn forget(&self, backend: BackendId) -> Result<()> {
        let at = self.0.at(backend.0 as usize).with_context(|| beyond(&TURNS, backend.0))?;
        // SAFETY: live mapping; no connection refers to this backend any more.
        unsafe { ptr::write_bytes(at, 0, 1) };
        Ok(())
    }
}
