//! getpeername(): the application sees the address that it asked for.

use sluice_common::verdict::Verdict;

use crate::{
    address::{Call, Family},
    maps::connection,
};

#[inline(always)]
pub fn getpeername<F: Family>(call: &Call<F>) -> i32 {
    let stored = connection(call.socket());
    if stored.is_null() {
        return call.proceed(Verdict::NotOurs);
    }
    // SAFETY: storage of a socket that this call holds.
    let connection = unsafe { &*stored };
    let peer = call.endpoint();
    // The same socket may have a direct connection now, even to the backend that it was steered to before.
    if !connection.is_open() || !connection.went_to(&peer.address, peer.port) {
        return call.proceed(Verdict::Stale);
    }
    call.redirect(&connection.frontend, connection.frontend_port);
    call.proceed(Verdict::Translated)
}
