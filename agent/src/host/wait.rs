//! Waiting for descriptors that no library wraps.
#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Registers a descriptor with the runtime of the calling thread.
///
/// # Errors
/// When epoll does not take it.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one and the same open descriptor until it is dropped, and AsyncFd owns it until then.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
