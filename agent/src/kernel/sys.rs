//! The bpf system call, for what aya 0.14 does not offer: plain maps by descriptor, link updates, map iterators.
#![allow(unsafe_code)]

use std::{
    ffi::CString,
    fs::File,
    io::{self, Error, ErrorKind, Read},
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const RAW_TRACEPOINT_OPEN: u32 = 17;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const ITER_CREATE: u32 = 33;
const TRACE_ITER: u32 = 28;

/// A map by its descriptor.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
}

/// A hash map with the types of its keys and values.
#[derive(Debug)]
pub struct Hash<K, V> {
    pub(super) map: Map,
    types: PhantomData<fn() -> (K, V)>,
}

/// `bpf_map_info`, the part that adoption compares.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapInfo {
    pub map_type: u32,
    pub id: u32,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

/// `bpf_link_info` of a cgroup link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CgroupLinkInfo {
    pub link_type: u32,
    pub id: u32,
    pub program_id: u32,
    padding: u32,
    /// 0 once the cgroup is gone.
    pub cgroup_id: u64,
    pub attach_type: u32,
    padding2: u32,
}

#[repr(C)]
struct Pin {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Iterators: address and length of `bpf_iter_link_info`.
    info: u64,
    info_length: u32,
    padding: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Map {
    pub fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Descriptor of a pinned map.
    pub fn pinned(path: &Path) -> io::Result<Self> {
        get_pinned(path).map(Self::new)
    }

    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    pub fn info(&self) -> io::Result<MapInfo> {
        info(&self.fd)
    }

    /// The value of every possible CPU for one key of a per-CPU map; `values` has that many entries.
    pub fn lookup_per_cpu(&self, key: u32, values: &mut [u64]) -> io::Result<()> {
        self.element(MAP_LOOKUP_ELEM, (&raw const key).addr_u64(), values.as_mut_ptr().cast_const().addr_u64())
            .map(drop)
    }

    /// Replaces the value of every possible CPU for one key of a per-CPU map; as many `values` as for
    /// [`Map::lookup_per_cpu`].
    pub fn update_per_cpu(&self, key: u32, values: &[u64]) -> io::Result<()> {
        self.element(MAP_UPDATE_ELEM, (&raw const key).addr_u64(), values.as_ptr().addr_u64()).map(drop)
    }

    /// The value at one index of an array; `value` is at least as long as the map's values.
    pub fn lookup_bytes(&self, index: u32, value: &mut [u8]) -> io::Result<()> {
        self.element(MAP_LOOKUP_ELEM, (&raw const index).addr_u64(), value.as_mut_ptr().cast_const().addr_u64())
            .map(drop)
    }

    fn element(&self, command: u32, key: u64, value: u64) -> io::Result<i64> {
        let mut attr = Element { map: self.fd.as_raw_fd() as u32, padding: 0, key, value, flags: 0 };
        bpf(command, &mut attr)
    }
}

impl<K: Copy, V: Copy> Hash<K, V> {
    /// # Safety
    /// The keys and values of `map` are of these types.
    pub unsafe fn new(map: Map) -> Self {
        Self { map, types: PhantomData }
    }

    /// Inserts or replaces one element.
    pub fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.element(MAP_UPDATE_ELEM, (key as *const K).addr_u64(), (value as *const V).addr_u64()).map(drop)
    }

    /// The value at one key of a hash map.
    pub fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let found =
            self.map.element(MAP_LOOKUP_ELEM, (key as *const K).addr_u64(), value.as_mut_ptr().cast_const().addr_u64());
        match found {
            // SAFETY: the kernel wrote a value of the map, which is of this type.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn remove(&self, key: &K) -> io::Result<()> {
        self.map.element(MAP_DELETE_ELEM, (key as *const K).addr_u64(), 0).map(drop)
    }

    /// All elements of a hash map that nobody else writes.
    pub fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        let mut previous: Option<K> = None;
        loop {
            let mut key = MaybeUninit::<K>::uninit();
            let before = previous.as_ref().map_or(0, |k| (k as *const K).addr_u64());
            match self.map.element(MAP_GET_NEXT_KEY, before, key.as_mut_ptr().cast_const().addr_u64()) {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
                Err(error) => return Err(error),
            }
            // SAFETY: the kernel wrote a key of the map.
            let key = unsafe { key.assume_init() };
            let mut value = MaybeUninit::<V>::uninit();
            self.map.element(
                MAP_LOOKUP_ELEM,
                (&raw const key).addr_u64(),
                value.as_mut_ptr().cast_const().addr_u64(),
            )?;
            // SAFETY: as above, for V.
            found.push((key, unsafe { value.assume_init() }));
            previous = Some(key);
        }
    }
}

/// Descriptor of whatever is pinned at `path`.
pub fn get_pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(OBJ_GET, &mut Pin { path: path.as_ptr().addr_u64(), fd: 0, flags: 0 })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Pins whatever `fd` is.
pub fn pin(fd: i32, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJ_PIN, &mut Pin { path: path.as_ptr().addr_u64(), fd: fd as u32, flags: 0 }).map(drop)
}

/// A new link of a program to a cgroup.
pub fn cgroup_link(cgroup: i32, program: i32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkCreate {
        program: program as u32,
        target: cgroup as u32,
        attach_type,
        flags: 0,
        info: 0,
        info_length: 0,
        padding: 0,
    };
    let link = bpf(LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}

/// Puts another program under a link, with no instant without one.
pub fn link_update(link: &OwnedFd, program: i32) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        link: u32,
        new_program: u32,
        flags: u32,
        old_program: u32,
    }
    let mut attr = Update { link: link.as_raw_fd() as u32, new_program: program as u32, flags: 0, old_program: 0 };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

pub fn cgroup_link_info(link: &OwnedFd) -> io::Result<CgroupLinkInfo> {
    info(link)
}

/// A link of a program to the tracepoint that it was loaded for.
pub fn trace_link(program: i32) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct TracepointOpen {
        /// The program knows.
        name: u64,
        program: u32,
        padding: u32,
    }
    let link = bpf(RAW_TRACEPOINT_OPEN, &mut TracepointOpen { name: 0, program: program as u32, padding: 0 })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}

/// An iterator, ready to run: over the elements of `map`, or over all that its kind walks.
pub fn iterator_link(program: i32, map: Option<i32>) -> io::Result<OwnedFd> {
    let map = map.map(|map| map as u32);
    let info = map.as_ref();
    let mut attr = LinkCreate {
        program: program as u32,
        target: 0,
        attach_type: TRACE_ITER,
        flags: 0,
        info: info.map_or(0, |map| (map as *const u32).addr_u64()),
        info_length: info.map_or(0, |map| size_of_val(map) as u32),
        padding: 0,
    };
    let link = bpf(LINK_CREATE, &mut attr)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(link as i32) })
}

/// One run of an iterator; returns what the program writes. An iterator over sockets walks the network namespace of the
/// thread that calls this.
pub fn run_iterator(link: &OwnedFd) -> io::Result<Vec<u8>> {
    let mut run = begin_iterator(link)?;
    let mut written = Vec::new();
    loop {
        match run.read_to_end(&mut written) {
            // It pauses after a million elements for which nothing was written.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return result.map(|_| written),
        }
    }
}

/// The same with a program that writes rows of this type: the kernel goes on to the next element when `each` is done with
/// the row of the last one.
///
/// # Safety
/// The program writes whole values of `T` and nothing else.
pub unsafe fn follow_iterator<T: Copy>(link: &OwnedFd, mut each: impl FnMut(&T)) -> io::Result<()> {
    let mut run = begin_iterator(link)?;
    let mut row = MaybeUninit::<T>::uninit();
    loop {
        // SAFETY: the bytes of `row`, which nobody else looks at meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts_mut(row.as_mut_ptr().cast::<u8>(), size_of::<T>()) };
        bytes.fill(0);
        match run.read(bytes) {
            Ok(0) => return Ok(()),
            // SAFETY: as the caller promises.
            Ok(length) if length == size_of::<T>() => each(unsafe { row.assume_init_ref() }),
            Ok(_) => return Err(Error::new(ErrorKind::InvalidData, "half a row")),
            // As above.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

fn begin_iterator(link: &OwnedFd) -> io::Result<File> {
    #[repr(C)]
    struct Iterate {
        link: u32,
        flags: u32,
    }
    let fd = bpf(ITER_CREATE, &mut Iterate { link: link.as_raw_fd() as u32, flags: 0 })?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { File::from_raw_fd(fd as i32) })
}

/// Sleeps until there is something to read.
pub fn wait_readable(fd: i32) -> io::Result<()> {
    let mut wait = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one entry, as is said.
    match unsafe { libc::poll(&raw mut wait, 1, -1) } {
        ..0 => Err(Error::last_os_error()).or_else(|error| match error.kind() {
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }),
        _ => Ok(()),
    }
}

/// `membarrier(MEMBARRIER_CMD_GLOBAL)`.
pub fn membarrier_global() -> io::Result<()> {
    const GLOBAL: i32 = 1;
    // SAFETY: a system call without pointers.
    if unsafe { libc::syscall(libc::SYS_membarrier, GLOBAL, 0, 0) } < 0 {
        return Err(Error::last_os_error());
    }
    Ok(())
}

/// What the kernel tells of a map, a program or a link; `T` is its layout.
pub(super) fn info<T: Copy + Default>(fd: &OwnedFd) -> io::Result<T> {
    info_with(fd, T::default())
}

/// The same, with what `value` asks for: places for lists, and their lengths.
pub(super) fn info_with<T: Copy>(fd: &OwnedFd, mut value: T) -> io::Result<T> {
    #[repr(C)]
    struct Info {
        fd: u32,
        length: u32,
        info: u64,
    }
    let mut attr = Info {
        fd: fd.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: (&raw mut value).cast_const().addr_u64(),
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(value)
}

/// `attr` is the kernel's layout for this command.
pub(super) fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i64> {
    // SAFETY: every attr of this file is the kernel's layout for its command, and the addresses in it point to values
    // that outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr as *mut T, size_of::<T>()) };
    if result < 0 { Err(Error::last_os_error()) } else { Ok(result) }
}

/// Addresses travel to the kernel as 64-bit integers.
pub(super) trait KernelAddress {
    fn addr_u64(self) -> u64;
}

impl<T> KernelAddress for *const T {
    fn addr_u64(self) -> u64 {
        self.expose_provenance() as u64
    }
}
