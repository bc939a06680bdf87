//! What the measurements ask of the bpf system call: run times of programs, an empty program, the memory of maps.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Error},
    mem::size_of,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};

const PROG_LOAD: u32 = 5;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const ENABLE_STATS: u32 = 32;

/// Places in a cgroup where programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Connect4,
    Connect6,
    Sendmsg4,
    Recvmsg4,
    Getpeername4,
    SockOps,
    SockRelease,
}

impl Hook {
    /// `enum bpf_attach_type` of the kernel.
    fn attach_type(self) -> u32 {
        match self {
            Self::SockOps => 3,
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::Sendmsg4 => 14,
            Self::Recvmsg4 => 19,
            Self::Getpeername4 => 29,
            Self::SockRelease => 34,
        }
    }

    /// `enum bpf_prog_type` of the kernel.
    fn program_type(self) -> u32 {
        match self {
            Self::SockRelease => 9,
            Self::SockOps => 13,
            Self::Connect4 | Self::Connect6 | Self::Sendmsg4 | Self::Recvmsg4 | Self::Getpeername4 => 18,
        }
    }
}

/// The kernel times every program while this lives.
#[derive(Debug)]
pub struct Stats {
    _fd: OwnedFd,
}

impl Stats {
    /// Begins to time.
    pub fn on() -> Result<Self> {
        // BPF_STATS_RUN_TIME is 0.
        let fd = bpf(ENABLE_STATS, &mut [0_u32; 2]).context("asking the kernel to time programs")?;
        Ok(Self { _fd: owned(fd) })
    }
}

/// A program that is attached somewhere.
#[derive(Debug)]
pub struct Attached {
    fd: OwnedFd,
}

/// Total time and number of the runs of a program while it was timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Runs {
    /// In all of them.
    pub nanos: u64,
    /// How many.
    pub count: u64,
}

impl Runs {
    /// What was added since an earlier reading.
    pub fn since(self, before: Self) -> Self {
        Self { nanos: self.nanos - before.nanos, count: self.count - before.count }
    }
}

impl Attached {
    /// The first program that is attached to this cgroup itself.
    pub fn find(cgroup: &Path, hook: Hook) -> Result<Self> {
        #[repr(C)]
        struct Query {
            cgroup: u32,
            attach_type: u32,
            query_flags: u32,
            attach_flags: u32,
            ids: u64,
            count: u32,
            padding: u32,
        }
        let directory = open(cgroup)?;
        let mut ids = [0_u32; 16];
        let mut query = Query {
            cgroup: directory.as_raw_fd().cast_unsigned(),
            attach_type: hook.attach_type(),
            query_flags: 0,
            attach_flags: 0,
            ids: address(&mut ids),
            count: 16,
            padding: 0,
        };
        bpf(PROG_QUERY, &mut query).with_context(|| format!("asking what is attached to {}", cgroup.display()))?;
        let id = ids.first().copied().filter(|_| query.count > 0);
        let id = id.with_context(|| format!("no program is attached to {} at {hook:?}", cgroup.display()))?;
        let fd = bpf(PROG_GET_FD_BY_ID, &mut [id, 0, 0]).context("opening an attached program")?;
        Ok(Self { fd: owned(fd) })
    }

    /// What it has run so far.
    pub fn runs(&self) -> Result<Runs> {
        // `struct bpf_prog_info` up to recursion_misses, as 64-bit words. What is zero asks for nothing.
        let mut info = [0_u64; 27];
        let mut attr = Info {
            fd: self.fd.as_raw_fd().cast_unsigned(),
            length: u32::try_from(size_of_val(&info)).context("the size of bpf_prog_info")?,
            info: address(&mut info),
        };
        bpf(OBJ_GET_INFO_BY_FD, &mut attr).context("reading the run time of a program")?;
        Ok(Runs { nanos: info[24], count: info[25] })
    }
}

/// What a program of two or three instructions does before it says that the call may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Little {
    /// Nothing.
    Empty,
    /// Calls bpf_ktime_get_ns().
    Clock,
}

/// A little program, attached while this lives.
#[derive(Debug)]
pub struct Attachment {
    _link: OwnedFd,
}

impl Attachment {
    /// Attaches one.
    pub fn new(cgroup: &Path, hook: Hook, little: Little) -> Result<Self> {
        #[repr(C)]
        struct Load {
            program_type: u32,
            instruction_count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            device: u32,
            attach_type: u32,
        }
        #[repr(C)]
        struct LinkCreate {
            program: u32,
            target: u32,
            attach_type: u32,
            flags: u32,
        }
        // r0 = 1; exit
        let mut instructions = vec![0x0000_0001_0000_00b7_u64, 0x95];
        if little == Little::Clock {
            // call 5
            instructions.insert(0, 0x0000_0005_0000_0085);
        }
        let mut license = *b"GPL\0";
        let mut load = Load {
            program_type: hook.program_type(),
            instruction_count: u32::try_from(instructions.len()).context("counting instructions")?,
            instructions: instructions.as_ptr().expose_provenance() as u64,
            license: address(&mut license),
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
            name: *b"sluice_bench\0\0\0\0",
            device: 0,
            attach_type: if hook == Hook::SockOps { 0 } else { hook.attach_type() },
        };
        let program = owned(bpf(PROG_LOAD, &mut load).context("loading a little program")?);
        let directory = open(cgroup)?;
        let mut create = LinkCreate {
            program: program.as_raw_fd().cast_unsigned(),
            target: directory.as_raw_fd().cast_unsigned(),
            attach_type: hook.attach_type(),
            flags: 0,
        };
        let link = bpf(LINK_CREATE, &mut create).context("attaching a little program")?;
        Ok(Self { _link: owned(link) })
    }
}

/// Bytes of kernel memory of every map pinned below a directory, as the kernel accounts them.
pub fn memory_of_maps(directory: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry.context("reading a directory")?.path();
        if path.is_dir() {
            sum += memory_of_maps(&path)?;
            continue;
        }
        let text = CString::new(path.as_os_str().as_bytes()).context("a path with a zero byte")?;
        let fd = bpf(OBJ_GET, &mut [text.as_ptr().expose_provenance() as u64, 0])
            .with_context(|| format!("opening {}", path.display()))?;
        let fd = owned(fd);
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).context("reading fdinfo")?;
        // Links and programs are pinned there too; a program's memory is not a map's.
        if info.lines().any(|line| line.starts_with("map_type:")) {
            let bytes =
                info.lines().find_map(|line| line.strip_prefix("memlock:")).and_then(|text| text.trim().parse().ok());
            sum += bytes.unwrap_or(0);
        }
    }
    Ok(sum)
}

#[repr(C)]
struct Info {
    fd: u32,
    length: u32,
    info: u64,
}

fn open(cgroup: &Path) -> Result<File> {
    File::open(cgroup).with_context(|| format!("opening {}", cgroup.display()))
}

fn owned(fd: i64) -> OwnedFd {
    // SAFETY: every caller passes a descriptor that the kernel has just made for this process; it fits an i32.
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

/// Addresses travel to the kernel as 64-bit integers.
fn address<T>(value: &mut T) -> u64 {
    std::ptr::from_mut(value).expose_provenance() as u64
}

fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: every attr of this file is the kernel's layout for its command, and the addresses in it point to values
    // that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}
