//! How far an operation on a node or backend has come.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How far an operation has come.
///
/// - `zeroed`: the kernel sends no new connection. A zero ends here, a drain goes on.
/// - `waiting`: what is left has requests in flight, or may not be closed.
/// - `closingIdle`: connections are idle, and closed when they have been for long enough. A drain goes back to
///   `waiting` when all of those are closed.
/// - `drained`: the end of a drain. Nothing is left: twice in a row, no connection was found.
/// - `deadlineReached`: the end of a drain that had something left at its deadline. The target stays zeroed.
/// - `cancelled`: the end of a drain whose target was restored, or left the configuration; `message` says which.
/// - `restored`: the end of a restore. The weight is back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Phase)]
pub enum OperationPhase {
    Zeroed,
    Waiting,
    ClosingIdle,
    Drained,
    DeadlineReached,
    Cancelled,
    Restored,
}

impl OperationPhase {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Zeroed => "zeroed",
            Self::Waiting => "waiting",
            Self::ClosingIdle => "closing idle",
            Self::Drained => "drained",
            Self::DeadlineReached => "deadline reached",
            Self::Cancelled => "cancelled",
            Self::Restored => "restored",
        }
    }
}
