//! The allocator. That of glibc sorts all that was freed when the next larger block is asked for: after a change that
//! concerned thousands of services, the next zero would wait for it for milliseconds.
#![allow(unsafe_code)]

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, for which the bindings have no name.
const PURGE_DELAY: mi_option_t = 15;

/// Gives whole pages back to the system as they become free, and not at some later request for memory: what an agent
/// needed to load its programs, or to read ten thousand documents, it may not need for weeks.
pub fn keep_little() {
    // SAFETY: a setting that the allocator reads as a number whenever it frees a page.
    unsafe { mi_option_set(PURGE_DELAY, 0) }
}
