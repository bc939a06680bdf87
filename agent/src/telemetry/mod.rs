//! What the agent tells about itself and its work: logs and metrics. Every metric name is in [`names`].

mod instruments;
pub mod logs;
pub mod names;
pub mod scrape;
mod text;

pub use instruments::{Closed, Instruments, Source};
