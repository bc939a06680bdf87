//! getpeername(): the application sees the address that it asked for.

use sluice_common::verdict::Verdict;

use super::call::{Call, Family};
use crate::storage::connection;

#[inline(always)]
pub fn getpeername<F: Family>(call: &Call<F>) -> Verdict {
    let stored = connection(call.socket());
    if stored.is_null() {
        return Verdict::NotOurs;
    }
    // SAFETY: storage of a socket that this call holds.
    let connection = unsafe { &*stored };
    let peer = call.endpoint();
    // The same socket may have a direct connection now, even to the backend that it was steered to before.
    if !connection.is_open() || !connection.went_to(&peer.address, peer.port) {
        return Verdict::Stale;
    }
    call.redirect(&connection.frontend, connection.frontend_port);
    Verdict::Translated
}
