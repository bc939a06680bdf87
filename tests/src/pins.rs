//! What an agent pinned, seen and changed from outside: to look whether links stay, and to forge what no agent would
//! write.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr,
};

use anyhow::{Context, Result, bail, ensure};

/// Commands of bpf(2), from linux/bpf.h.
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_NEXT_KEY: i32 = 4;
const OBJECT_PIN: i32 = 6;
const OBJECT_GET: i32 = 7;
const PROGRAM_BY_ID: i32 = 13;
const INFO_BY_FD: i32 = 15;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;

/// `union bpf_attr`, as far as these commands need it; the rest is zero.
type Attributes = [u64; 16];

/// The files below a directory of pins, as `maps/NAME` and `links/NAME`, sorted. Empty when there is none.
pub fn names(bpffs: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for part in ["maps", "links"] {
        let entries = fs::read_dir(bpffs.join(part)).into_iter().flatten().flatten();
        names.extend(entries.map(|entry| format!("{part}/{}", entry.file_name().to_string_lossy())));
    }
    names.sort();
    names
}

/// The id of the link, and of the program behind it, of a pinned link.
pub fn link(pin: &Path) -> Result<(u32, u32)> {
    let link = open(pin)?;
    // struct bpf_link_info: type, id, prog_id.
    let mut info = [0_u32; 32];
    let length = u32::try_from(size_of_val(&info)).context("the size of the information")?;
    let mut attributes = Attributes::default();
    attributes[0] = number(link.as_raw_fd()) | u64::from(length) << 32;
    attributes[1] = address(info.as_mut_ptr());
    bpf(INFO_BY_FD, &mut attributes).with_context(|| format!("asking what {} is", pin.display()))?;
    let [_, id, program, ..] = info;
    Ok((id, program))
}

/// How many instructions the verifier looked at in the program behind a pinned link (since Linux 5.16).
pub fn verified(pin: &Path) -> Result<u64> {
    let (_, program) = link(pin)?;
    let mut attributes = Attributes::default();
    attributes[0] = u64::from(program);
    let program =
        bpf(PROGRAM_BY_ID, &mut attributes).with_context(|| format!("opening the program of {}", pin.display()))?;
    // SAFETY: the kernel has just made this descriptor for this process.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", program.as_raw_fd())).context("reading fdinfo")?;
    let line = info.lines().find_map(|line| line.strip_prefix("verified_insns:")).context("no verified_insns")?;
    line.trim().parse().context("reading verified_insns")
}

/// Pins once more what is open.
pub fn pin(what: &OwnedFd, pin: &Path) -> Result<()> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("a path with a zero byte")?;
    let mut attributes = Attributes::default();
    attributes[0] = address(path.as_ptr().cast_mut());
    attributes[1] = number(what.as_raw_fd());
    bpf(OBJECT_PIN, &mut attributes).map(drop).with_context(|| format!("pinning {}", pin.display()))
}

/// Puts the program of another pinned link under a pinned link.
pub fn replace_by(pin: &Path, other: &Path) -> Result<()> {
    let (_, id) = link(other)?;
    let mut attributes = Attributes::default();
    attributes[0] = u64::from(id);
    let program = bpf(PROGRAM_BY_ID, &mut attributes).with_context(|| format!("opening program {id}"))?;
    // SAFETY: the kernel has just made this descriptor for this process.
    replace(pin, unsafe { OwnedFd::from_raw_fd(program) }.as_fd())
}

/// Puts another program under a pinned link.
pub fn replace(pin: &Path, program: BorrowedFd<'_>) -> Result<()> {
    let link = open(pin)?;
    let mut attributes = Attributes::default();
    attributes[0] = number(link.as_raw_fd()) | number(program.as_raw_fd()) << 32;
    bpf(LINK_UPDATE, &mut attributes).map(drop).with_context(|| format!("replacing the program of {}", pin.display()))
}

/// Detaches a pinned link: the pin and the link stay, and do nothing any more.
pub fn detach(pin: &Path) -> Result<()> {
    let link = open(pin)?;
    let mut attributes = Attributes::default();
    attributes[0] = number(link.as_raw_fd());
    bpf(LINK_DETACH, &mut attributes).map(drop).with_context(|| format!("detaching {}", pin.display()))
}

/// The value of a pinned array at an index.
pub fn value<T: Copy>(pin: &Path, index: u32) -> Result<T> {
    element(&open(pin)?, pin, index)
}

/// Changes a value of a pinned array. `T` is the layout that the array really has.
pub fn change<T: Copy>(pin: &Path, index: u32, change: impl FnOnce(&mut T)) -> Result<()> {
    let map = open(pin)?;
    let mut value = element::<T>(&map, pin, index)?;
    change(&mut value);
    on_element(&map, MAP_UPDATE, index, &mut value).with_context(|| format!("writing {}", pin.display()))
}

/// Changes every value of a pinned hash table. `K` and `T` are the layouts that it really has.
pub fn change_all<K: Copy, T: Copy>(pin: &Path, change: impl Fn(&K, &mut T)) -> Result<()> {
    let map = open(pin)?;
    let mut keys: Vec<K> = Vec::new();
    loop {
        // SAFETY: plain integers and arrays of them, for which zero is a value; so are those of the values below.
        let mut next: K = unsafe { std::mem::zeroed() };
        let mut last = keys.last().copied();
        let mut attributes = Attributes::default();
        attributes[0] = number(map.as_raw_fd());
        attributes[1] = last.as_mut().map_or(0, |key| address(ptr::from_mut(key)));
        attributes[2] = address(&raw mut next);
        match bpf(MAP_NEXT_KEY, &mut attributes) {
            Ok(_) => keys.push(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error).with_context(|| format!("listing {}", pin.display())),
        }
    }
    for key in keys {
        // SAFETY: as above.
        let mut value: T = unsafe { std::mem::zeroed() };
        on_element(&map, MAP_LOOKUP, key, &mut value).with_context(|| format!("reading {}", pin.display()))?;
        change(&key, &mut value);
        on_element(&map, MAP_UPDATE, key, &mut value).with_context(|| format!("writing {}", pin.display()))?;
    }
    Ok(())
}

/// The first element among the first `limit` of a pinned array that is as wanted, with its index.
pub fn find<T: Copy>(pin: &Path, limit: u32, wanted: impl Fn(&T) -> bool) -> Result<(u32, T)> {
    let map = open(pin)?;
    for index in 0..limit {
        let value = element::<T>(&map, pin, index)?;
        if wanted(&value) {
            return Ok((index, value));
        }
    }
    bail!("no such element among the first {limit} of {}", pin.display())
}

fn element<T: Copy>(map: &OwnedFd, pin: &Path, index: u32) -> Result<T> {
    ensure!(size_of::<T>().is_multiple_of(8), "the kernel copies multiples of eight bytes");
    // SAFETY: the callers ask for plain integers and arrays of them, for which zero is a value.
    let mut value = unsafe { std::mem::zeroed() };
    on_element(map, MAP_LOOKUP, index, &mut value).with_context(|| format!("reading {}", pin.display()))?;
    Ok(value)
}

fn on_element<K, T>(map: &OwnedFd, command: i32, mut key: K, value: &mut T) -> io::Result<()> {
    let mut attributes = Attributes::default();
    attributes[0] = number(map.as_raw_fd());
    attributes[1] = address(&raw mut key);
    attributes[2] = address(ptr::from_mut(value));
    bpf(command, &mut attributes).map(drop)
}

/// What is pinned.
pub fn open(pin: &Path) -> Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).context("a path with a zero byte")?;
    let mut attributes = Attributes::default();
    attributes[0] = address(path.as_ptr().cast_mut());
    let fd = bpf(OBJECT_GET, &mut attributes).with_context(|| format!("opening the pin {}", pin.display()))?;
    ensure!(fd >= 0, "no descriptor for {}", pin.display());
    // SAFETY: the kernel has just made this descriptor for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf(command: i32, attributes: &mut Attributes) -> io::Result<RawFd> {
    // SAFETY: pointers inside the attributes are to values of the callers that live until the call returns, and that are
    // as large as the command needs.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of::<Attributes>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

fn number(fd: RawFd) -> u64 {
    u64::from(fd.unsigned_abs())
}

fn address<T>(pointer: *mut T) -> u64 {
    pointer as usize as u64
}
