//! What a change of documents is kept from doing unless it is insisted on, judged by all that it does together.

use crate::model::{Change, Refusal, State, Touched, shortages};

/// The guards that are up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guards {
    /// Of the capacity that services must keep open. (A zero brings its own.)
    pub capacity: bool,
    /// Of what is there, when services go that nobody has named.
    pub shrink: bool,
}

impl Guards {
    /// # Errors
    /// A conflict that names what stands in the way.
    pub fn check(self, before: &State, after: &State, touched: &Touched, changes: &[Change]) -> Result<(), Refusal> {
        let is_document = |change: &Change| {
            matches!(
                change,
                Change::PutService { .. }
                    | Change::PatchService { .. }
                    | Change::PatchBackend { .. }
                    | Change::PatchGroup { .. }
            )
        };
        if !self.capacity || !changes.iter().any(is_document) {
            return Ok(());
        }
        // A whole document may say that nothing takes connections. Who changes one weight means to leave something open.
        let is_weight = |change: &Change| matches!(change, Change::PatchBackend { .. } | Change::PatchGroup { .. });
        shortages("this change", before.short_after(after, touched, changes.iter().all(is_weight)))
    }
}
