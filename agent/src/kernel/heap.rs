//! Memory that the agent has freed and its allocator keeps.
#![allow(unsafe_code)]

/// Gives freed memory back to the system. After ten thousand documents were read, or a large state was built, three
/// quarters of the heap are such memory. Takes tens of milliseconds then, in which other threads may wait for memory:
/// to be called after such work, and by nobody who is waited for.
pub fn give_back() {
    // SAFETY: it touches nothing but free memory, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
