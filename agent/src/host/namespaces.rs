//! Network namespaces: found by their processes, recognized by the kernel's cookie, entered on a thread that ends there.
#![allow(unsafe_code)]

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{Error, ErrorKind},
    net::{IpAddr, UdpSocket},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    thread,
};

use anyhow::{Context, Result, anyhow};
use nix::{
    getsockopt_impl,
    sched::{CloneFlags, setns},
    sockopt_impl,
    sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket},
};

sockopt_impl!(
    /// The kernel's number of the network namespace of a socket (Linux 5.14 and later).
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// A network namespace, kept alive by this value.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// That of a process.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/ns/net");
        let file = File::open(&path).with_context(|| format!("opening {path}: is there a process {pid}?"))?;
        Ok(Self { file })
    }

    /// The namespace with this cookie, whose file has the number `inode`: by these numbers where the kernel opens files by
    /// them (Linux 6.18 and later), be the process `pid` out of sight or gone; or else by this process.
    pub fn with_cookie(cookie: u64, inode: u32, pid: u32) -> Option<Self> {
        Self::by_handle(cookie, inode).or_else(|| Self::by_process(cookie, pid))
    }

    /// Needs CAP_SYS_ADMIN.
    fn by_handle(cookie: u64, inode: u32) -> Option<Self> {
        /// `FILEID_NSFS`
        const NSFS: u32 = 0xf1;
        /// `FD_NSFS_ROOT`
        const ROOT: i32 = -10003;
        // `struct file_handle`, with 16 bytes of `struct nsfs_file_handle`; its number of 64 bits has the lower half first.
        let halves = [cookie as u32, (cookie >> 32) as u32];
        let handle = [16, NSFS, halves[0], halves[1], libc::CLONE_NEWNET as u32, inode];
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the kernel reads the handle, whose first word says how many bytes follow the second one.
        let file = owned(unsafe { libc::syscall(libc::SYS_open_by_handle_at, ROOT, handle.as_ptr(), flags) });
        Some(Self { file: file.ok()?.into() }).filter(|found| found.cookie().is_ok_and(|found| found == cookie))
    }

    /// If the process or one of its sockets is in it: a process may have left the namespace in which it made a socket.
    fn by_process(cookie: u64, pid: u32) -> Option<Self> {
        let own = Self::of_process(pid).ok().filter(|own| own.cookie().is_ok_and(|own| own == cookie));
        own.or_else(|| {
            let sockets = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().filter(|entry| {
                fs::read_link(entry.path())
                    .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
            });
            let process = pidfd_open(pid).ok()?;
            let mut numbers = sockets.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            numbers.find_map(|number| {
                let socket = pidfd_getfd(&process, number).ok()?;
                getsockopt(&socket, NetnsCookie).is_ok_and(|found| found == cookie).then_some(())?;
                Some(Self { file: namespace_of(&socket).ok()? })
            })
        })
    }

    /// The namespaces of some processes or threads, each once, and how many hide theirs. Those that are gone do not count.
    pub fn of_tasks(pids: impl IntoIterator<Item = u32>) -> (Vec<Self>, usize) {
        let mut seen = HashSet::new();
        let (mut found, mut hidden) = (Vec::new(), 0);
        for pid in pids {
            // Most processes share a namespace: it is opened once.
            match fs::metadata(format!("/proc/{pid}/ns/net")) {
                Ok(metadata) if seen.insert((metadata.dev(), metadata.ino())) => found.extend(Self::of_process(pid)),
                Ok(_) => {}
                // 0 stands for a process of another pid namespace.
                Err(error) if pid == 0 || error.kind() == ErrorKind::PermissionDenied => hidden += 1,
                Err(_) => {}
            }
        }
        (found, hidden)
    }

    /// Its number in the kernel's records.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn cookie(&self) -> Result<u64> {
        tour([(self, ())], |()| cookie_here()).pop().context("no answer from a network namespace")?
    }
}

/// Runs `work` in each namespace, with the value beside it, on a thread that ends afterwards: no other thread ever
/// changes its namespace. Each result is that of one namespace.
pub fn tour<'a, A: Send, T: Send>(
    namespaces: impl IntoIterator<Item = (&'a Namespace, A), IntoIter: Send>,
    mut work: impl FnMut(A) -> Result<T> + Send,
) -> Vec<Result<T>> {
    let namespaces = namespaces.into_iter();
    thread::scope(|scope| {
        let visit = move || {
            let visit = |(namespace, about): (&Namespace, A)| {
                setns(&namespace.file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
                work(about)
            };
            namespaces.map(visit).collect()
        };
        match thread::Builder::new().spawn_scoped(scope, visit) {
            Ok(visitor) => {
                visitor.join().unwrap_or_else(|_| vec![Err(anyhow!("the visit to a network namespace failed"))])
            }
            Err(error) => vec![Err(anyhow!(error).context("starting a thread that enters network namespaces"))],
        }
    })
}

/// Every process that /proc shows.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether the namespace that this thread is in has the address. Taken for granted where it cannot be told: there may be
/// no port left, or somebody may forbid it.
pub fn is_local(address: &IpAddr) -> bool {
    let Err(error) = UdpSocket::bind((*address, 0)) else { return true };
    error.kind() != ErrorKind::AddrNotAvailable && error.raw_os_error() != Some(libc::EAFNOSUPPORT)
}

/// The cookie of the namespace that this thread is in.
///
/// # Errors
/// When no socket can be opened.
pub fn cookie_here() -> Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
        .context("opening a socket to read its network namespace")?;
    getsockopt(&socket, NetnsCookie).context("reading SO_NETNS_COOKIE")
}

/// A descriptor of a process, readable once it has ended (Linux 5.3 and later).
///
/// # Errors
/// When the process is gone.
pub fn pidfd_open(pid: u32) -> std::io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A descriptor of another process, as one of ours (Linux 5.6 and later).
fn pidfd_getfd(process: &OwnedFd, number: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: a system call without pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// The namespace of a socket (`SIOCGSKNS`, Linux 4.10 and later).
fn namespace_of(socket: &OwnedFd) -> std::io::Result<File> {
    const SIOCGSKNS: libc::c_ulong = 0x894c;
    // SAFETY: a system call without pointers.
    owned(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS) })).map(File::from)
}

fn owned(fd: i64) -> std::io::Result<OwnedFd> {
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_in_a_namespace_with_a_cookie() {
        let own = Namespace::of_process(std::process::id()).unwrap();
        assert_eq!(own.cookie().unwrap(), cookie_here().unwrap());
        let twice = Namespace::of_tasks([std::process::id(), std::process::id(), u32::MAX]);
        assert_eq!((twice.0.len(), twice.1), (1, 0));
        assert_eq!(Namespace::of_tasks([0]).1, 1);
        assert!(Namespace::of_process(u32::MAX).unwrap_err().to_string().contains("is there a process"));
    }

    #[test]
    fn a_namespace_is_found_by_a_socket_that_was_made_there() {
        let pid = std::process::id();
        assert!(Namespace::with_cookie(cookie_here().unwrap(), 0, pid).is_some());
        assert!(Namespace::with_cookie(u64::MAX, 0, pid).is_none());
    }

    #[test]
    fn numbers_of_another_namespace_open_none() {
        let inode = fs::metadata("/proc/self/ns/net").unwrap().ino() as u32;
        assert!(Namespace::by_handle(u64::MAX, inode).is_none());
        assert!(Namespace::by_handle(cookie_here().unwrap(), inode + 1).is_none());
    }
}
