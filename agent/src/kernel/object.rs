//! The eBPF object: its tables found or made, its programs loaded by their kind. What they are for is not known here.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Map as AyaMap, MapData, RingBuf},
    programs::{Program as AyaProgram, ProgramFd},
};
use aya_log::EbpfLogger;
use sluice_common::{
    registry::{self, Keep, Spec, TableOf},
    verdict::Program,
};

use super::{
    Config,
    attach::{Hook, hook},
    errors,
    facts::{Facts, OBSERVED},
    sys::{Hash, Map},
};

/// A loaded object: its tables are there, its programs are not yet.
pub struct Object {
    ebpf: Ebpf,
    /// For the programs that are of no cgroup; there are none among the observed ones.
    kernel: Option<(Btf, Facts)>,
}

/// What an iterator over the records of steered sockets walks.
pub const STEERED: &str = "bpf_sk_storage_map";

const NO_TYPES: &str = "this object was loaded without the kernel's types";

/// The kernel's own types. Reading them takes longer than all else at a start: 10 ms.
///
/// # Errors
/// When this kernel was built without.
pub fn kernel_types() -> Result<Btf> {
    Btf::from_sys_fs().context("reading the kernel's BTF")
}

impl Object {
    /// Makes the tables, or adopts those that are pinned where `pin` says.
    ///
    /// # Errors
    /// When the kernel lacks what the programs need to know of it, or refuses a table.
    pub fn load(config: &Config, pin: impl Fn(&Spec) -> PathBuf) -> Result<Self> {
        let types = kernel_types()?;
        let facts = Facts::find(&types)?;
        let mask = mask(config);
        let mut loader = loader(config, &mask, pin);
        facts.tell(&mut loader);
        let ebpf = loader.load(&facts.object()).map_err(errors::explain)?;
        Ok(Self { ebpf, kernel: Some((types, facts)) })
    }

    /// The observed programs, on the tables that are pinned where `pin` says. A table that is not there is made: the caller
    /// has looked whether they are. `logs`: the programs log at level debug.
    ///
    /// # Errors
    /// When the kernel refuses a table.
    pub fn observed(config: &Config, pin: impl Fn(&Spec) -> PathBuf, logs: bool) -> Result<Self> {
        let (mask, level) = (mask(config), if logs { aya_log::Level::Debug as u8 } else { 0 });
        let mut loader = loader(config, &mask, pin);
        let ebpf = loader.override_global(aya_log::LEVEL, &level, true).load(OBSERVED).map_err(errors::explain)?;
        Ok(Self { ebpf, kernel: None })
    }

    /// Takes the ring of the programs' own messages, which go to this process's log.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn take_log(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        EbpfLogger::init(&mut self.ebpf).context("mapping the ring of messages")
    }

    /// Makes small tables that nobody finds, for a look at what the kernel accepts; the verifier says why it does not.
    ///
    /// # Errors
    /// When the kernel refuses a table.
    pub fn on_trial(types: Btf, facts: Facts) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DEBUG);
        facts.tell(&mut loader);
        let ebpf = loader.load(&facts.object()).map_err(errors::explain)?;
        Ok(Self { ebpf, kernel: Some((types, facts)) })
    }

    /// The same of the observed programs, without their messages.
    ///
    /// # Errors
    /// As [`Object::on_trial`].
    pub fn observed_on_trial() -> Result<Self> {
        let mut loader = EbpfLoader::new();
        loader.verifier_log_level(VerifierLogLevel::DEBUG).override_global(aya_log::LEVEL, &0_u8, true);
        Ok(Self { ebpf: loader.load(OBSERVED).map_err(errors::explain)?, kernel: None })
    }

    /// See [`Facts::can_destroy`].
    pub fn can_destroy(&self) -> bool {
        self.kernel.as_ref().is_some_and(|(_, facts)| facts.can_destroy())
    }

    /// A table, by a descriptor of its own.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn map(&self, table: &Spec) -> Result<Map> {
        let map = self.ebpf.map(table.name).with_context(|| format!("the object has no table {}", table.name))?;
        let fd = descriptor(map)?.try_clone_to_owned().context("duplicating a descriptor")?;
        Ok(Map::new(fd))
    }

    /// An array, and how many entries it has.
    ///
    /// # Errors
    /// As [`Object::map`].
    pub fn array<V>(&self, table: &TableOf<u32, V>) -> Result<(Map, usize)> {
        let map = self.map(&table.spec)?;
        let info = map.info().with_context(|| format!("asking for the size of {}", table.spec.name))?;
        Ok((map, info.max_entries as usize))
    }

    /// # Errors
    /// As [`Object::map`].
    pub fn hash<K: Copy, V: Copy>(&self, table: &TableOf<K, V>) -> Result<Hash<K, V>> {
        // SAFETY: the registry has the types with which the programs declare this table.
        Ok(unsafe { Hash::new(self.map(&table.spec)?) })
    }

    /// Takes a ring, which has one reader.
    ///
    /// # Errors
    /// When it cannot be mapped.
    pub fn take_ring(&mut self, table: &Spec) -> Result<RingBuf<MapData>> {
        let ring = self.ebpf.take_map(table.name).with_context(|| format!("the object has no table {}", table.name))?;
        RingBuf::try_from(ring).with_context(|| format!("mapping {}", table.name))
    }

    /// Has the verifier check a program, by what it is attached to.
    ///
    /// # Errors
    /// When the kernel refuses it, or lacks what it needs.
    pub fn program(&mut self, program: Program) -> Result<ProgramFd> {
        let name = program.name();
        let found = self.ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
        let loaded = match (hook(program), &mut *found) {
            (Hook::Cgroup(_), AyaProgram::CgroupSockAddr(program)) => program.load(),
            (Hook::Cgroup(_), AyaProgram::CgroupSock(program)) => program.load(),
            (Hook::Cgroup(_), AyaProgram::SockOps(program)) => program.load(),
            (Hook::Tracepoint(tracepoint), AyaProgram::BtfTracePoint(program)) => {
                let (types, facts) = self.kernel.as_ref().context(NO_TYPES)?;
                ensure!(facts.can_time_turns(), "this kernel lacks a member of tcp_sock, sk_buff or tcp_skb_cb");
                program.load(tracepoint, types)
            }
            (Hook::Function(function), AyaProgram::FEntry(program)) => {
                let (types, _) = self.kernel.as_ref().context(NO_TYPES)?;
                program.load(function, types)
            }
            (Hook::Cgroup(_) | Hook::Tracepoint(_) | Hook::Function(_), _) => {
                return Err(anyhow!("{name} is a program of another kind"));
            }
        };
        loaded.map_err(errors::explain).with_context(|| format!("loading {name}"))?;
        Ok(found.fd()?.try_clone()?)
    }

    /// Has the verifier check an iterator over `over`: [`STEERED`], "tcp" or "udp".
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn iterator(&mut self, name: &str, over: &str) -> Result<ProgramFd> {
        let found = self.ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
        let AyaProgram::Iter(iterator) = found else { return Err(anyhow!("{name} is no iterator")) };
        let (types, _) = self.kernel.as_ref().context(NO_TYPES)?;
        iterator.load(over, types).map_err(errors::explain).with_context(|| format!("loading {name}"))?;
        Ok(iterator.fd()?.try_clone()?)
    }
}

fn mask(config: &Config) -> u32 {
    registry::FRONTENDS.spec.entries.of(&config.sizes) - 1
}

fn loader<'a>(config: &'a Config, mask: &'a u32, pin: impl Fn(&Spec) -> PathBuf) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DISABLE).override_global("MARK", &config.mark, true).override_global(
        "FRONTENDS_MASK",
        mask,
        true,
    );
    for table in registry::ALL {
        loader.map_max_entries(table.name, table.entries.of(&config.sizes));
        match table.keep {
            Keep::Pinned => loader.map_pin_path(table.name, pin(table)),
            Keep::Own | Keep::Observed => &mut loader,
        };
    }
    loader
}

fn descriptor(map: &AyaMap) -> Result<BorrowedFd<'_>> {
    use AyaMap::{Array, HashMap, LruHashMap, PerCpuArray, SkStorage};
    match map {
        Array(data) | HashMap(data) | LruHashMap(data) | PerCpuArray(data) | SkStorage(data) => Ok(data.fd().as_fd()),
        _ => Err(anyhow!("a kind of table that this agent does not know")),
    }
}
