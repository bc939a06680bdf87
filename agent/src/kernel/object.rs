//! The eBPF object: tables found or made, programs loaded.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, anyhow};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{CgroupSock, CgroupSockAddr, Iter, Program as AyaProgram, ProgramFd, SockOps},
};
use sluice_common::verdict::Program;

use super::{Config, btf, census::CensusProgram, errors, pins, sys::Map};

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf"));

/// A loaded object: its maps are pinned, its programs not yet attached.
pub struct Object {
    ebpf: Ebpf,
}

/// Makes or adopts the tables, and has the verifier check the programs.
pub fn load(directory: &pins::Directory, config: &Config) -> Result<Object> {
    let offsets = btf::offsets()?;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DISABLE).override_global("MARK", &config.mark, true).override_global(
        "OFFSETS",
        offsets.as_slice(),
        true,
    );
    loader.map_max_entries("TALLY", config.sizes.backends);
    for name in pins::maps() {
        loader.map_pin_path(name, directory.map(name));
        if pins::entries(name, &config.sizes) != 0 {
            loader.map_max_entries(name, pins::entries(name, &config.sizes));
        }
    }
    let ebpf = loader.load(OBJECT).map_err(errors::explain)?;
    Ok(Object { ebpf })
}

impl Object {
    /// A map of the object, by a descriptor of its own.
    pub fn map(&self, name: &str) -> Result<Map> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no table {name}"))?;
        let fd = map_fd(map)?.try_clone_to_owned().context("duplicating a descriptor")?;
        Ok(Map::new(fd))
    }

    /// Loads all programs.
    pub fn into_programs(mut self) -> Result<(Vec<(Program, Loaded)>, CensusProgram)> {
        let mut loaded = Vec::new();
        for program in Program::ALL {
            let found = self.ebpf.program_mut(program.name());
            let found = found.with_context(|| format!("the object has no program {}", program.name()))?;
            let fd = load_program(found).with_context(|| format!("loading {}", program.name()))?;
            loaded.push((program, Loaded { fd }));
        }
        let types = kernel_types()?;
        let census = load_iterator(&mut self.ebpf, "census", &types)?;
        let tally = load_iterator(&mut self.ebpf, "tally", &types)?;
        let connections = self.map("CONNECTIONS")?;
        Ok((loaded, CensusProgram::new(census, tally, connections)))
    }
}

/// The kernel's own types. Reading them takes longer than all else at a start: 10 ms.
pub fn kernel_types() -> Result<Btf> {
    Btf::from_sys_fs().context("reading the kernel's BTF")
}

/// Loads one of the iterators over the steered sockets.
pub fn load_iterator(ebpf: &mut Ebpf, name: &str, types: &Btf) -> Result<ProgramFd> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let iterator: &mut Iter = program.try_into()?;
    iterator.load("bpf_sk_storage_map", types).map_err(errors::explain).with_context(|| format!("loading {name}"))?;
    Ok(iterator.fd()?.try_clone()?)
}

/// A program that the verifier accepted.
pub struct Loaded {
    fd: ProgramFd,
}

impl Loaded {
    pub fn fd(&self) -> i32 {
        self.fd.as_fd().as_raw_fd()
    }
}

pub fn load_program(program: &mut AyaProgram) -> Result<ProgramFd> {
    match program {
        AyaProgram::CgroupSockAddr(_) => {
            let program: &mut CgroupSockAddr = program.try_into()?;
            program.load().map_err(errors::explain)?;
            Ok(program.fd()?.try_clone()?)
        }
        AyaProgram::CgroupSock(_) => {
            let program: &mut CgroupSock = program.try_into()?;
            program.load().map_err(errors::explain)?;
            Ok(program.fd()?.try_clone()?)
        }
        AyaProgram::SockOps(_) => {
            let program: &mut SockOps = program.try_into()?;
            program.load().map_err(errors::explain)?;
            Ok(program.fd()?.try_clone()?)
        }
        _ => Err(anyhow!("a kind of program that this agent does not load")),
    }
}

fn map_fd(map: &aya::maps::Map) -> Result<std::os::fd::BorrowedFd<'_>> {
    use aya::maps::Map::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
    match map {
        Array(data) | HashMap(data) | LruHashMap(data) | PerCpuArray(data) | SkStorage(data) => Ok(data.fd().as_fd()),
        _ => Err(anyhow!("a kind of table that this agent does not know")),
    }
}
