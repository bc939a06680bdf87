//! Tests of the sources with real files and processes.

mod store;
