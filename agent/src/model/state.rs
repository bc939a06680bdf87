//! The whole desired state as one immutable value: cloning is cheap, readers never wait.

/// What fits. Each limit is also the size of a kernel table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub services: u32,
    pub backends: u32,
    pub nodes: u32,
    pub frontends: u32,
}

#[derive(Clone, Debug)]
pub struct State;
