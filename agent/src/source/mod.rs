//! Where desired state comes from: the embedded store that keeps it, and the files that bring it.
//! A source never changes the state itself: the store answers what was kept, files send events that become changes.
//! Events, marks and origins are keyed by a file's path: another source needs a wider key.

pub mod files;
pub mod reconcile;
pub mod store;
pub mod watcher;

#[cfg(test)]
mod tests;
