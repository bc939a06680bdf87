//! The loss matrix: real clients with pools of connections, while their servers are drained and restored in turn. What a
//! client calls a failed request was lost. `cells` is the one list of who meets whom; the black-box tests play some of it
//! for seconds, the bench all of it for a minute each.

mod cell;
mod cells;
pub mod hyper;
mod outcome;
mod play;
mod servers;

pub use cell::{Cell, Effort, Expect, Says, ServerKind};
pub use cells::{CELLS, cell};
pub use outcome::{Drained, HEAD, Outcome, Report};
pub use play::{closes_in_one_step, run};
