//! Counts the steered connections of each backend. No rows are written, so that the walk is never interrupted and
//! misses nobody. (A walk that fills the reader's buffer is resumed by position, which shifts when sockets go.)

use sluice_common::records::{ConnectionRecord, Phase};

use super::walk::{self, Records, Sockets};
use crate::{
    counters::add,
    storage::{TALLY, TALLY_BEFORE},
};

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
pub fn tally(ctx: *mut Records) -> i32 {
    walk::records(ctx).map_or(0, |(_, record)| tell(record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub fn tally_tcp(ctx: *mut Sockets) -> i32 {
    walk::tcp(ctx).map_or(0, |(_, record)| tell(record))
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/udp")]
pub fn tally_udp(ctx: *mut Sockets) -> i32 {
    walk::udp(ctx).map_or(0, |(_, record)| tell(record))
}

#[inline(always)]
fn tell(record: &ConnectionRecord) -> i32 {
    let one = match record.phase {
        phase if phase == Phase::Opened as u8 => 1,
        phase if phase == Phase::Established as u8 => 1 << 32,
        _ => return 0,
    };
    if TALLY_BEFORE.get(0).is_some_and(|before| record.since < *before)
        && let Some(count) = TALLY.get_ptr_mut(record.backend_id)
    {
        add(count, one);
    }
    0
}
