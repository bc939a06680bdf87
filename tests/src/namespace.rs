//! Network namespaces.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, UdpSocket},
    os::fd::AsRawFd,
    path::PathBuf,
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::system::eventually;

/// A network namespace. It has no name in /run/netns: it lives as long as this value and the processes inside.
#[derive(Debug)]
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// A new namespace whose loopback device is up.
    pub fn new() -> Result<Self> {
        let made = on_own_thread(|| -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            open_own()
        });
        let namespace = Self { file: made? };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace that the test itself runs in.
    pub fn host() -> Result<Self> {
        Ok(Self { file: open_own()? })
    }

    /// The same one, kept alive by one value more.
    pub fn again(&self) -> Result<Self> {
        Ok(Self { file: self.file.try_clone().context("copying a descriptor")? })
    }

    /// Runs `job` on a thread of its own inside the namespace. Sockets and threads that it makes stay inside.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> T + Send) -> T {
        on_own_thread(|| {
            setns(&self.file, CloneFlags::CLONE_NEWNET).expect("a network namespace can be entered");
            job()
        })
    }

    /// A path by which other processes can enter while this value lives.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", process::id(), self.file.as_raw_fd()))
    }

    /// Runs iproute2 inside, for example `ip("link set lo up")`.
    pub fn ip(&self, arguments: &str) -> Result<()> {
        let output = self.run(|| Command::new("ip").args(arguments.split_whitespace()).output());
        let output = output.context("starting ip")?;
        let message = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "ip {arguments}: {}", message.trim());
        Ok(())
    }

    /// Gives the loopback device one more address.
    pub fn address(&self, address: IpAddr) -> Result<()> {
        self.address_on("lo", address, host_prefix(address))
    }

    /// Gives a device an address that works at once: IPv6 without duplicate address detection.
    pub fn address_on(&self, device: &str, address: IpAddr, prefix: u8) -> Result<()> {
        if address.is_ipv4() {
            return self.ip(&format!("address add {address}/{prefix} dev {device}"));
        }
        self.ip(&format!("address add {address}/{prefix} dev {device} nodad"))?;
        // The kernel adds the route to the address later, on a work queue: until then it is unreachable.
        eventually("an IPv6 address works", Duration::from_secs(5), || self.run(|| reaches_itself(address).ok()))
    }

    /// Sets a value under /proc/sys/net, for example `sysctl("ipv4/ip_forward", "1")`.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let file = PathBuf::from("/proc/sys/net").join(name);
        self.run(|| fs::write(&file, value)).with_context(|| format!("writing {value} to {}", file.display()))
    }

    /// Joins two namespaces by a pair of devices that are up, each with one address (and prefix length).
    /// Returns the names of the device here and of the device there.
    pub fn link(&self, there: &Namespace, here_address: (IpAddr, u8), there_address: (IpAddr, u8)) -> Result<Link> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let link = Link { here: format!("h{}x{number}", process::id()), there: format!("t{}x{number}", process::id()) };
        let Link { here: ours, there: theirs } = &link;
        let peer = there.path();
        self.ip(&format!("link add {ours} type veth peer name {theirs} netns {}", peer.display()))?;
        // An address works once both ends are up.
        self.ip(&format!("link set {ours} up"))?;
        there.ip(&format!("link set {theirs} up"))?;
        self.address_on(ours, here_address.0, here_address.1)?;
        there.address_on(theirs, there_address.0, there_address.1)?;
        Ok(link)
    }
}

/// The two ends of a pair of devices. They go away with either namespace.
#[derive(Clone, Debug)]
pub struct Link {
    /// The device in the namespace that made the link.
    pub here: String,
    /// The device in the other one.
    pub there: String,
}

/// 32 for IPv4, 128 for IPv6.
pub fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Sends a datagram from an address to itself.
fn reaches_itself(address: IpAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((address, 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    socket.send_to(b"?", socket.local_addr()?)?;
    socket.recv_from(&mut [0]).map(drop)
}

fn open_own() -> Result<File> {
    File::open("/proc/thread-self/ns/net").context("opening the thread's network namespace")
}

/// Changing a namespace must not leak into the thread of the test.
fn on_own_thread<T: Send>(job: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(job).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
