//! Memory that the agent has freed and its allocator keeps.
#![allow(unsafe_code)]

/// Fixes two limits that glibc otherwise raises with the largest block that was ever freed, so that memory goes back to
/// the system as it is freed: blocks from 256 KiB on are mappings of their own, and no more than 1 MiB is kept at the
/// end of a heap. Small blocks join their free neighbours at once: the end of a thread's heap is given back at such a
/// moment or never. To be called before there are threads.
pub fn keep_little() {
    // SAFETY: settings of the allocator, made before it is used by a second thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
        libc::mallopt(libc::M_MXFAST, 0);
    }
}

/// Gives back what is free between blocks in use. After ten thousand documents were read, or a large state was built,
/// it is half of the heap. Takes tens of milliseconds then, in which other threads may wait for memory: to be called
/// after such work, and by nobody who is waited for.
pub fn give_back() {
    // SAFETY: it touches nothing but free memory, and takes the allocator's own locks.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}
