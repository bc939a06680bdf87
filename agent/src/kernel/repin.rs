//! Pins that somebody has removed while no agent ran: the programs that are attached hold their tables still, and lead to
//! them. A new table in the place of one would be empty, and the programs on it would steer nothing until it is filled.
#![allow(unsafe_code)]

use std::{
    collections::BTreeSet,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::Result;
use sluice_common::{
    registry::{self, Keep},
    verdict::Program,
};

use super::{
    attach::maps_of,
    pins::{Directory, pin_over},
    sys::{self, Map, bpf, info},
};

const MAP_GET_FD_BY_ID: u32 = 14;

/// `bpf_map_info`, up to the name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct NamedMap {
    kind: u32,
    id: u32,
    unused: [u32; 4],
    name: [u8; 16],
}

/// Pins the tables again that the programs under the pinned links have, and that are not pinned.
///
/// # Errors
/// When a table cannot be pinned.
pub fn tables(directory: &Directory) -> Result<()> {
    let missing = registry::ALL.iter().filter(|table| table.keep == Keep::Pinned);
    let mut missing: Vec<_> = missing.map(|table| table.name).filter(|name| !directory.map(name).exists()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    // Under another name as well, as before an upgrade.
    let pins = fs::read_dir(directory.path().join("maps")).into_iter().flatten().flatten();
    let ids = pins.filter_map(|pin| Some(Map::pinned(&pin.path()).ok()?.info().ok()?.id));
    let pinned: BTreeSet<u32> = ids.collect();
    for program in Program::ALL {
        // A link that is gone, or leads nowhere any more, tells nothing.
        let Ok(held) = sys::get_pinned(&directory.link(program.name())) else { continue };
        let Ok(maps) = sys::cgroup_link_info(&held).and_then(|link| tables_of(link.program_id)) else { continue };
        for (NamedMap { id, name, .. }, map) in maps {
            let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            let name = String::from_utf8_lossy(&name[..length]);
            if pinned.contains(&id) {
                continue;
            }
            if let Some(place) = missing.iter().position(|missing| *missing == name) {
                let table = missing.swap_remove(place);
                tracing::error!("the pin of {table} was removed: the table is pinned again");
                pin_over(map.as_raw_fd(), &directory.map(table))?;
            }
        }
    }
    Ok(())
}

/// The tables of a program.
fn tables_of(program: u32) -> io::Result<Vec<(NamedMap, OwnedFd)>> {
    #[repr(C)]
    struct MapById {
        id: u32,
        next: u32,
        flags: u32,
    }
    let maps = maps_of(program)?.into_iter().filter_map(|id| {
        let map = bpf(MAP_GET_FD_BY_ID, &mut MapById { id, next: 0, flags: 0 }).ok()?;
        // SAFETY: the kernel just made this descriptor for us.
        let map = unsafe { OwnedFd::from_raw_fd(map as i32) };
        Some((info(&map).ok()?, map))
    });
    Ok(maps.collect())
}
