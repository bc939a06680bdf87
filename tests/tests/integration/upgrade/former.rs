//! What an agent of the former release leaves in the kernel: its pins, and its programs at work.
//!
//! `tests/fixtures/tables-2.o` is the eBPF object that the last release with tables of version 2 carries. Its tables differ
//! from today's in two of them: so those of an agent that has ended are made into former ones, with everything that is in
//! them, and the former programs are put under the pinned links.

use std::{fs, os::fd::AsFd, path::Path};

use anyhow::{Context, Result};
use aya::{
    Ebpf, EbpfLoader,
    maps::MapInfo,
    programs::{Program, ProgramFd},
};
use sluice::kernel::btf;
use sluice_common::records::KernelMember;
use sluice_tests::{Agent, pins};

use crate::forge;

/// Aligned, as it is parsed in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../fixtures/tables-2.o");

/// The pinned tables of the former release.
const TABLES: [&str; 12] = [
    "META",
    "NODES",
    "BACKENDS",
    "SLOTS",
    "SERVICES",
    "COUNTERS",
    "WATCHES",
    "VERDICTS",
    "FLOWS",
    "CONNECTIONS",
    "FILTER",
    "FRONTENDS",
];
pub const VERSION: u32 = 2;

/// Turns what an agent has left into what the former release leaves. The agent does not run.
pub fn install(agent: &Agent) -> Result<()> {
    let maps = agent.bpffs().join("maps");
    fs::rename(maps.join("STREAKS"), maps.join("WATCHES")).context("giving a table its former name")?;
    fs::remove_file(maps.join("VERDICTS")).context("removing a table that had another size")?;
    forge::meta(agent, |meta| meta.abi_version = VERSION)?;
    let mut object = load(&maps)?;
    for (name, program) in object.programs_mut() {
        if let Some(loaded) = of_the_cgroup(program).with_context(|| format!("loading the former {name}"))? {
            pins::replace(&agent.bpffs().join("links").join(name), loaded.as_fd())?;
        }
    }
    Ok(())
}

/// Without those of members that the former programs do not read.
fn former_offsets() -> Result<Vec<u32>> {
    const LATER: [KernelMember; 5] = [
        KernelMember::NetInode,
        KernelMember::Delivered,
        KernelMember::PingPong,
        KernelMember::PeerTimestamp,
        KernelMember::TimestampOffset,
    ];
    let all = btf::offsets()?;
    let is_former = |place: &usize| !LATER.iter().any(|later| *later as usize == *place);
    Ok((0..all.len()).filter(is_former).map(|place| all[place]).collect())
}

fn load(maps: &Path) -> Result<Ebpf> {
    let offsets = former_offsets()?;
    let mask = MapInfo::from_pin(maps.join("FRONTENDS")).context("opening FRONTENDS")?.max_entries() - 1;
    let mut loader = EbpfLoader::new();
    loader.override_global("OFFSETS", offsets.as_slice(), true).override_global("FRONTENDS_MASK", &mask, true);
    for table in TABLES {
        loader.map_pin_path(table, maps.join(table));
    }
    loader.load(OBJECT).context("loading the former object")
}

/// Has the verifier check a program, if it is one of those that the agent attaches to the cgroup.
fn of_the_cgroup(program: &mut Program) -> Result<Option<ProgramFd>> {
    match program {
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        _ => return Ok(None),
    }
    Ok(Some(program.fd()?.try_clone()?))
}
