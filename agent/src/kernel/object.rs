//! The eBPF object: tables found or made, programs loaded.

use std::{
    borrow::Cow,
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use anyhow::{Context, Result, anyhow, ensure};
use aya::{
    Btf, Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{BtfTracePoint, CgroupSock, CgroupSockAddr, Iter, Program as AyaProgram, ProgramFd, SockOps},
};
use aya_obj::btf::BtfKind;
use sluice_common::{drain::DESTROY, records::NO_MEMBER, verdict::Program};

use super::{Config, btf, census::CensusProgram, drain::Passes, errors, pins, sys::Map, turns::TurnTimes, walk::Walk};
use crate::host::clock;

/// The compiled programs.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sluice-ebpf"));

/// A loaded object: its maps are pinned, its programs not yet attached.
pub struct Object {
    ebpf: Ebpf,
    types: Btf,
    facts: Facts,
}

/// What the programs are told about this kernel.
pub struct Facts {
    offsets: [u32; sluice_common::records::MEMBERS],
    hz: u32,
    /// BTF id of `bpf_sock_destroy` (6.5 and later).
    destroy: Option<u32>,
}

impl Facts {
    /// # Errors
    /// When this kernel has no BTF or lacks a member.
    pub fn find(types: &Btf) -> Result<Self> {
        let destroy = types.id_by_type_name_kind("bpf_sock_destroy", BtfKind::Func).ok();
        Ok(Self { offsets: btf::offsets()?, hz: clock::hz(), destroy })
    }

    /// Whether the kernel has the members that turn time is measured by.
    fn can_time_turns(&self) -> bool {
        btf::TURN_TIME.iter().all(|member| self.offsets[*member as usize] != NO_MEMBER)
    }

    pub fn can_destroy(&self) -> bool {
        self.destroy.is_some()
    }

    /// The object as this kernel can load it.
    pub fn object(&self) -> Cow<'static, [u8]> {
        match self.destroy {
            Some(function) => Cow::Owned(with_destroy(OBJECT, function)),
            None => Cow::Borrowed(OBJECT),
        }
    }

    pub fn tell<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        const YES: &u32 = &1;
        loader.override_global("OFFSETS", self.offsets.as_slice(), true).override_global("HZ", &self.hz, true);
        if self.can_destroy() {
            loader.override_global("CAN_DESTROY", YES, true);
        }
    }
}

/// Turns calls of the helper number [`DESTROY`] into calls of a kernel function: an instruction has its opcode in byte 0,
/// the source register in the upper half of byte 1 (2: BPF_PSEUDO_KFUNC_CALL) and the number in bytes 4 to 7.
fn with_destroy(object: &[u8], function: u32) -> Vec<u8> {
    const CALL: u8 = 0x85;
    let mut call = [CALL, 0, 0, 0, 0, 0, 0, 0];
    call[4..].copy_from_slice(&DESTROY.to_le_bytes());
    let mut patched = object.to_vec();
    for instruction in patched.chunks_exact_mut(8).filter(|instruction| **instruction == call) {
        instruction[1] = 0x20;
        instruction[4..].copy_from_slice(&function.to_le_bytes());
    }
    patched
}

/// Makes or adopts the tables, and has the verifier check the programs.
pub fn load(directory: &pins::Directory, config: &Config) -> Result<Object> {
    let types = kernel_types()?;
    let facts = Facts::find(&types)?;
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::DISABLE).override_global("MARK", &config.mark, true);
    let mask = pins::entries("FRONTENDS", &config.sizes) - 1;
    loader.override_global("FRONTENDS_MASK", &mask, true);
    facts.tell(&mut loader);
    for name in ["TALLY", "TURNS", "DRAINING", "REMAINS", "INBOUND"] {
        loader.map_max_entries(name, config.sizes.backends);
    }
    for name in pins::maps() {
        loader.map_pin_path(name, directory.map(name));
        if pins::entries(name, &config.sizes) != 0 {
            loader.map_max_entries(name, pins::entries(name, &config.sizes));
        }
    }
    let ebpf = loader.load(&facts.object()).map_err(errors::explain)?;
    Ok(Object { ebpf, types, facts })
}

impl Object {
    /// A map of the object, by a descriptor of its own.
    pub fn map(&self, name: &str) -> Result<Map> {
        let map = self.ebpf.map(name).with_context(|| format!("the object has no table {name}"))?;
        let fd = map_fd(map)?.try_clone_to_owned().context("duplicating a descriptor")?;
        Ok(Map::new(fd))
    }

    /// Takes a map that is read in its own way.
    pub fn take_map(&mut self, name: &str) -> Result<aya::maps::Map> {
        self.ebpf.take_map(name).with_context(|| format!("the object has no table {name}"))
    }

    /// Loads the programs of the cgroup.
    pub fn hooks(&mut self) -> Result<Vec<(Program, Loaded)>> {
        let mut hooks = Vec::new();
        for program in Program::ALL {
            let found = self.ebpf.program_mut(program.name());
            let found = found.with_context(|| format!("the object has no program {}", program.name()))?;
            let fd = load_program(found).with_context(|| format!("loading {}", program.name()))?;
            hooks.push((program, Loaded { fd }));
        }
        Ok(hooks)
    }

    /// Loads the program of turn time, where this kernel has what it takes.
    pub fn turns(&mut self) -> TurnTimes {
        let program = load_turns(&mut self.ebpf, &self.facts, &self.types);
        if let Err(error) = &program {
            tracing::info!("turn time cannot be measured: {error:#}");
        }
        TurnTimes::new(program.ok())
    }

    /// Loads all programs.
    pub fn into_programs(mut self, cgroup: &Path) -> Result<Programs> {
        let hooks = self.hooks()?;
        let records = self.map("CONNECTIONS")?;
        let mut walk = |name| Walk::load(&mut self.ebpf, name, &self.types, &records, cgroup);
        let (census, tally, survey) = (walk("census")?, walk("tally")?, walk("survey")?);
        if let Walk::Namespaces { .. } = census {
            tracing::warn!("this kernel refuses the iterator over records: sockets are found namespace by namespace");
        }
        let mut iterator = |name, over| load_iterator(&mut self.ebpf, name, over, &self.types);
        let (tcp, udp) = (iterator("visit_tcp", "tcp")?, iterator("visit_udp", "udp")?);
        let census = CensusProgram::new(census, tally);
        let passes = Passes::new(&self, survey, [tcp, udp], self.facts.can_destroy())?;
        Ok(Programs { hooks, census, passes, turns: self.turns() })
    }
}

/// Everything that was loaded, by what it is for.
pub struct Programs {
    pub hooks: Vec<(Program, Loaded)>,
    pub census: CensusProgram,
    pub passes: Passes,
    pub turns: TurnTimes,
}

/// What an iterator over the records of steered sockets walks.
pub const STEERED: &str = "bpf_sk_storage_map";

/// The kernel's own types. Reading them takes longer than all else at a start: 10 ms.
pub fn kernel_types() -> Result<Btf> {
    Btf::from_sys_fs().context("reading the kernel's BTF")
}

/// Loads an iterator over `over`: [`STEERED`], "tcp" or "udp".
pub fn load_iterator(ebpf: &mut Ebpf, name: &str, over: &str, types: &Btf) -> Result<ProgramFd> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    let iterator: &mut Iter = program.try_into()?;
    iterator.load(over, types).map_err(errors::explain).with_context(|| format!("loading {name}"))?;
    Ok(iterator.fd()?.try_clone()?)
}

/// Loads the program that measures turn time.
///
/// # Errors
/// When this kernel lacks the tracepoint or a member.
pub fn load_turns(ebpf: &mut Ebpf, facts: &Facts, types: &Btf) -> Result<ProgramFd> {
    ensure!(facts.can_time_turns(), "this kernel lacks a member of tcp_sock, sk_buff or tcp_skb_cb");
    let program = ebpf.program_mut("turn").context("the object has no program turn")?;
    let program: &mut BtfTracePoint = program.try_into()?;
    program.load("tcp_probe", types).map_err(errors::explain).context("loading turn")?;
    Ok(program.fd()?.try_clone()?)
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
