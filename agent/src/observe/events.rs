//! What happened, in order: kept in memory, resumable by id.

/// The last events, and a way to wait for the next.
#[derive(Debug, Default)]
pub struct EventLog;
