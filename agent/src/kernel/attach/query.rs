//! Which programs run on the hooks of a cgroup, and what they are.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
};

use crate::kernel::sys::{bpf, info, info_with};

const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;

/// `bpf_prog_info`, up to the name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ProgramInfo {
    kind: u32,
    pub id: u32,
    unused: [u64; 5],
    owner: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

impl ProgramInfo {
    /// As it was loaded, cut after 15 bytes; empty when it has none.
    pub fn name(&self) -> String {
        let length = self.name.iter().position(|byte| *byte == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..length]).into_owned()
    }
}

/// What a program is.
pub fn program_info(program: &OwnedFd) -> io::Result<ProgramInfo> {
    info(program)
}

/// As [`program_info`], of the program with this id.
pub fn program_with_id(id: u32) -> io::Result<ProgramInfo> {
    program_info(&program(id)?)
}

/// Ids of the tables of the program with this id.
pub fn maps_of(id: u32) -> io::Result<Vec<u32>> {
    // More than the registry has.
    let mut ids = [0_u32; 64];
    let asked = ProgramInfo {
        maps: ids.len() as u32,
        map_ids: ids.as_mut_ptr().cast_const().expose_provenance() as u64,
        ..ProgramInfo::default()
    };
    let found = info_with(&program(id)?, asked)?.maps as usize;
    Ok(ids[..found.min(ids.len())].to_vec())
}

fn program(id: u32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct ProgramById {
        id: u32,
        next: u32,
        flags: u32,
    }
    let program = bpf(PROG_GET_FD_BY_ID, &mut ProgramById { id, next: 0, flags: 0 })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(program as i32) })
}

/// Ids of the programs that run on a hook of a cgroup, those of the cgroups above it too, in the order in which they run.
pub fn programs_on(cgroup: i32, attach_type: u32) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    /// As large as newer kernels take it to be: some write all of it.
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
        unused: [u64; 4],
    }
    let mut ids = vec![0_u32; 64];
    loop {
        let mut attr = Query {
            target: cgroup as u32,
            attach_type,
            flags: EFFECTIVE,
            attach_flags: 0,
            ids: ids.as_mut_ptr().cast_const().expose_provenance() as u64,
            count: ids.len() as u32,
            padding: 0,
            unused: [0; 4],
        };
        match bpf(PROG_QUERY, &mut attr) {
            Ok(_) => {
                ids.truncate(attr.count as usize);
                return Ok(ids);
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => ids.resize(ids.len() * 2, 0),
            Err(error) => return Err(error),
        }
    }
}
