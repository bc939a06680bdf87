//! FRONTENDS: which service an address belongs to.
//!
//! FILTER lets most non-frontend addresses be rejected with one bit, and is small enough to stay in a processor's cache.
//! FRONTENDS is a hash table in an array of cache lines: a bucket has room for two frontends, and nearly every frontend is
//! in its home bucket. Each bucket counts the frontends that overflowed it; a look-up continues only while that count is
//! non-zero (as in F14, <https://engineering.fb.com/2019/04/25/developer-tools/f14/>). The agent alone writes both tables,
//! by stores; programs read them without calling a helper.
#![allow(unsafe_code)]

use core::ptr;

use crate::tables::Endpoint;

/// Frontends in one bucket.
pub const PLACES: usize = 2;
/// Buckets in which a frontend may be, from its home on.
///
/// With twice as many buckets as frontends one frontend in thirty is not in its home, and of 65,536 the farthest is some
/// five buckets away, eight at most in a hundred tries: each bucket more is about a tenth as likely.
pub const PROBES: u32 = 16;

/// Bits of FILTER: one for each value of [`filter_bit`]. 64 KiB; with 10,000 frontends one foreign address in fifty is
/// looked up for nothing.
pub const FILTER_BITS: u32 = 1 << 19;
/// Entries of FILTER, of 64 bits.
pub const FILTER_ENTRIES: u32 = FILTER_BITS / 64;

/// The bit of an address in FILTER: while it is clear, the address is no frontend.
#[inline(always)]
pub const fn filter_bit(frontend: &Endpoint) -> u32 {
    // The high bits: the low ones choose the bucket.
    frontend.hash() >> (32 - FILTER_BITS.trailing_zeros())
}

/// A frontend and its service.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub frontend: Endpoint,
    /// Service id plus one; 0: the place is free. Stored last, and cleared first. A freed place loses its port and
    /// protocol, and is used again only after every program that may have read it has ended.
    pub service: u32,
}

/// Entry of FRONTENDS: one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    pub places: [Place; PLACES],
    /// Frontends that found no room here and are in a bucket after this one.
    pub passed: u32,
    pub padding: [u32; 3],
}

/// Buckets for each frontend that a table is made for.
pub const BUCKETS_EACH: u32 = 2;

/// Number of buckets for so many frontends: a power of two times [`BUCKETS_EACH`].
pub const fn buckets(frontends: u32) -> u32 {
    let frontends = if frontends < 16 { 16 } else { frontends };
    BUCKETS_EACH * frontends.next_power_of_two()
}

/// The buckets of a table.
pub trait Buckets {
    /// One of them; `None` beyond the end.
    fn bucket(&self, index: u32) -> Option<*const Bucket>;
    /// Number of buckets less one.
    fn mask(&self) -> u32;

    /// What [`further`] finds. The kernel side keeps it out of the way of the common case.
    fn further(&self, frontend: &Endpoint) -> u32 {
        further(self, frontend)
    }
}

/// Index of the bucket that a frontend comes to after `probes` others.
#[inline(always)]
pub fn index(frontend: &Endpoint, probes: u32, mask: u32) -> u32 {
    frontend.hash().wrapping_add(probes) & mask
}

/// The service that has this frontend.
#[inline(always)]
pub fn find<T: Buckets + ?Sized>(table: &T, frontend: &Endpoint) -> Option<u32> {
    let bucket = table.bucket(index(frontend, 0, table.mask()))?;
    let mut service = service_in(bucket, frontend);
    if service == 0 && passed(bucket) != 0 {
        service = table.further(frontend);
    }
    service.checked_sub(1)
}

/// Service id plus one of a frontend that may be in a bucket after its home; 0: it is not there.
#[inline(always)]
pub fn further<T: Buckets + ?Sized>(table: &T, frontend: &Endpoint) -> u32 {
    for probes in 1..PROBES {
        let Some(bucket) = table.bucket(index(frontend, probes, table.mask())) else {
            return 0;
        };
        let service = service_in(bucket, frontend);
        if service != 0 || passed(bucket) == 0 {
            return service;
        }
    }
    0
}

#[inline(always)]
fn passed(bucket: *const Bucket) -> u32 {
    // SAFETY: an entry of the table, an aligned word.
    unsafe { ptr::read_volatile(&raw const (*bucket).passed) }
}

#[inline(always)]
fn service_in(bucket: *const Bucket, frontend: &Endpoint) -> u32 {
    // SAFETY: both are places of an entry of the table.
    unsafe {
        let first = &raw const (*bucket).places[0];
        let service = service_at(first, frontend);
        if service != 0 { service } else { service_at(&raw const (*bucket).places[1], frontend) }
    }
}

/// # Safety
/// `place` is a place of the table.
#[inline(always)]
unsafe fn service_at(place: *const Place, frontend: &Endpoint) -> u32 {
    // SAFETY: by the caller; aligned words, the service first.
    unsafe {
        let service = ptr::read_volatile(&raw const (*place).service);
        let held = &raw const (*place).frontend;
        let address = (&raw const (*held).address).cast::<u32>();
        let is_it = ptr::read_volatile(address.add(3)) == frontend.address[3]
            && ptr::read_volatile(&raw const (*held).port) == frontend.port
            && ptr::read_volatile(&raw const (*held).protocol) == frontend.protocol
            && ptr::read_volatile(address.add(2)) == frontend.address[2]
            && ptr::read_volatile(address.add(1)) == frontend.address[1]
            && ptr::read_volatile(address) == frontend.address[0];
        // Read again: a program interrupted in between may have read the service of one frontend and the address of the
        // next one in this place.
        if is_it && service != 0 { ptr::read_volatile(&raw const (*place).service) } else { 0 }
    }
}

const _: () = {
    assert!(size_of::<Place>() == 24);
    assert!(size_of::<Bucket>() == 64);
};
