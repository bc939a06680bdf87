//! Takes changes of the history back.

use jiff::Timestamp;

use super::{
    client::{ChangeError, Done, Options},
    event_loop::Engine,
};
use crate::{
    model::{Change, Refusal, undo::Undo},
    plan::DataPlane,
    view::history::{UndoEffect, UndoItem},
};

impl<M: DataPlane> Engine<M> {
    /// Puts back what `change` replaced: all of it, as one change, or nothing.
    ///
    /// # Errors
    /// When it is not kept or not as that change left it; and as [`Engine::change`].
    pub(super) fn undo_change(&mut self, change: u64, options: Options) -> Result<(Done, Vec<UndoItem>), ChangeError> {
        let replaced = self.replaced(change)?;
        let changes = replaced.changes(&self.state, Timestamp::now(), !options.guards.capacity)?;
        let done = self.change(&changes, options)?;
        Ok((done, changes.iter().filter_map(item).collect()))
    }

    fn replaced(&self, change: u64) -> Result<Undo, ChangeError> {
        if let Some(undo) = self.audit.replaced(&self.store, change).map_err(ChangeError::Failed)? {
            return Ok(undo);
        }
        Err(if self.audit.history().holds(change) {
            let why = "what it replaced is not kept: it came from a file, replaced too much, or is too long ago";
            Refusal::conflict(format!("change {change} cannot be undone: {why}"), Vec::new()).into()
        } else {
            Refusal::not_found(format!("there is no change {change}: `sluice history` lists them")).into()
        })
    }
}

/// What a change puts back.
fn item(change: &Change) -> Option<UndoItem> {
    let (object, effect) = match change {
        Change::PutService { document, .. } => (format!("service/{}", document.metadata.name), UndoEffect::PutBack),
        Change::DeleteService { service, .. } => (format!("service/{service}"), UndoEffect::Removed),
        Change::PutNode { document } => (format!("node/{}", document.metadata.name), UndoEffect::PutBack),
        Change::UndeclareNode { node } => (format!("node/{node}"), UndoEffect::Removed),
        Change::Zero { target, .. } => (target.to_string(), UndoEffect::Zeroed),
        Change::Restore { target } => (target.to_string(), UndoEffect::Restored),
        // None of those that put something back.
        Change::PatchService { .. }
        | Change::PatchBackend { .. }
        | Change::PatchGroup { .. }
        | Change::DeleteNode { .. }
        | Change::EndDrains { .. }
        | Change::UpdateHealth { .. } => return None,
    };
    Some(UndoItem { object, effect })
}
