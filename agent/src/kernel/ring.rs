//! A ring that programs write: for one thread, which sleeps until something is in it.
#![allow(unsafe_code)]

use std::{
    io::{self, Error, ErrorKind, PipeReader, PipeWriter, Read, Write},
    marker::PhantomData,
    mem::size_of,
    os::fd::AsRawFd,
    ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use sluice_common::registry::{Sizes, Spec, TableOf};

use super::{memory::Window, object::Object};

/// The reader of a ring of `T`s.
pub struct Ring<T> {
    ring: RingBuf<MapData>,
    woken: PipeReader,
    waker: Waker,
    /// Records that it has room for.
    room: usize,
    records: PhantomData<fn() -> T>,
}

/// Ends a [`Ring::wait`] early, from any thread.
#[derive(Clone, Debug)]
pub struct Waker(Arc<PipeWriter>);

/// How many records found no room in a ring.
#[derive(Clone)]
pub(super) struct Losses(Arc<Window<u64>>);

impl<T: Copy> Ring<T> {
    /// # Safety
    /// The programs write records of this type, which any bytes are.
    pub(super) unsafe fn new(object: &mut Object, table: &Spec) -> Result<Self> {
        let ring = object.take_ring(table)?;
        let (woken, waker) = io::pipe().context("making a pipe")?;
        set_nonblocking(woken.as_raw_fd()).context("making a pipe")?;
        set_nonblocking(waker.as_raw_fd()).context("making a pipe")?;
        // The same for all sizes. The kernel puts 8 bytes before each record.
        let room = table.entries.of(&Sizes::SMALL) as usize / (size_of::<T>() + 8);
        Ok(Self { ring, woken, waker: Waker(Arc::new(waker)), room, records: PhantomData })
    }

    /// What ends a wait of this reader early.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Sleeps until there are records, and takes them, at most as many as the ring has room for; nothing when the waker was
    /// used or `timeout` (`None`: for ever) is over. The kernel wakes once for a batch that comes while this thread is busy.
    ///
    /// # Errors
    /// When the kernel refuses to wait.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<Vec<T>> {
        let found = self.take();
        if !found.is_empty() {
            return Ok(found);
        }
        let wait_for = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut fds = [wait_for(self.ring.as_raw_fd()), wait_for(self.woken.as_raw_fd())];
        // Rounded up: a thread that waits for the rest of a millisecond must not spin.
        let millis = timeout.map_or(-1, |timeout| timeout.as_micros().div_ceil(1000).min(i32::MAX as u128) as i32);
        // SAFETY: an array of as many entries as is said.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, millis) } < 0 {
            let error = Error::last_os_error();
            return if error.kind() == ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
        }
        if fds[1].revents != 0 {
            // What is left, if anything, ends the next wait.
            let _ = self.woken.read(&mut [0; 64]);
        }
        Ok(self.take())
    }

    fn take(&mut self) -> Vec<T> {
        let mut found = Vec::new();
        // Programs may write as fast as this reads.
        for _ in 0..self.room {
            let Some(item) = self.ring.next() else { break };
            if item.len() >= size_of::<T>() {
                // SAFETY: a record of this type, by the promise made to `new`; no alignment is asked for.
                found.push(unsafe { ptr::read_unaligned(item.as_ptr().cast()) });
            }
        }
        found
    }
}

impl Waker {
    /// Ends the wait that is on, or the next one.
    pub fn wake(&self) {
        // A full pipe wakes as well.
        let _ = (&*self.0).write(&[1]);
    }
}

impl Losses {
    pub(super) fn map(object: &Object, table: &TableOf<u32, u64>) -> Result<Self> {
        Ok(Self(Arc::new(Window::whole(object, table)?)))
    }

    pub(super) fn count(&self) -> u64 {
        // SAFETY: an aligned word of a live mapping.
        self.0.at(0).map_or(0, |at| unsafe { AtomicU64::from_ptr(at) }.load(Ordering::Relaxed))
    }
}

fn set_nonblocking(fd: i32) -> io::Result<()> {
    // SAFETY: system calls without pointers on a descriptor that the caller owns.
    let result = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) | libc::O_NONBLOCK) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
