//! Every steered socket of the host at one instant.

use sluice_common::records::CensusRow;

/// One pass over the socket storage of all namespaces.
#[derive(Clone, Debug)]
pub struct Census {
    pub rows: Vec<CensusRow>,
    /// Jiffies a second, to turn the rows' `now - last_sent` into time.
    pub hz: u32,
}
