//! Many elements of a hash map in one system call.
#![allow(unsafe_code)]

use std::{io, mem::MaybeUninit};

use super::sys::{Hash, KernelAddress, bpf};

const MAP_LOOKUP_BATCH: u32 = 24;

/// Elements of one call.
const AT_ONCE: usize = 4096;

/// `union bpf_attr` of this command.
#[repr(C)]
struct BatchLookup {
    /// Address of the place to begin with; 0 at the beginning.
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    /// Room for so many; then how many there are.
    count: u32,
    map: u32,
    flags: [u64; 2],
}

impl<K: Copy, V: Copy> Hash<K, V> {
    /// The elements of a map that others write meanwhile: one that comes or goes may be missing, or there twice.
    pub fn batches(&self) -> io::Result<Vec<(K, V)>> {
        let mut keys = vec![MaybeUninit::<K>::uninit(); AT_ONCE];
        let mut values = vec![MaybeUninit::<V>::uninit(); AT_ONCE];
        let mut found = Vec::new();
        let mut place: Option<u32> = None;
        loop {
            let mut next = 0_u32;
            let mut attr = BatchLookup {
                from: place.as_ref().map_or(0, |place| (place as *const u32).addr_u64()),
                next: (&raw mut next).cast_const().addr_u64(),
                keys: keys.as_mut_ptr().cast_const().addr_u64(),
                values: values.as_mut_ptr().cast_const().addr_u64(),
                count: AT_ONCE as u32,
                map: self.map.fd() as u32,
                flags: [0; 2],
            };
            let is_over = match bpf(MAP_LOOKUP_BATCH, &mut attr) {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let read = keys.iter().zip(&values).take(attr.count as usize);
            // SAFETY: the kernel wrote so many keys and values of the map.
            found.extend(read.map(|(key, value)| unsafe { (key.assume_init(), value.assume_init()) }));
            if is_over {
                return Ok(found);
            }
            place = Some(next);
        }
    }
}
