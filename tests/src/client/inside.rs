//! The client process: goes where it is told, then answers requests until its input ends.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, BufRead, Write},
    net::{SocketAddr, UdpSocket},
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
    unistd::setsid,
};
use socket2::{SockAddr, SockRef};

use super::{
    protocol::{Reply, Request},
    worker::{Lines, Loads, open_datagrams, open_stream},
};
use crate::cgroup;

/// What the program does; its arguments are described there.
pub fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1);
    let mut next = |what: &str| arguments.next().with_context(|| format!("no {what} given"));
    let (mode, group, namespace) = (next("mode")?, next("cgroup")?, next("namespace")?);
    // Without the test there is nobody to stop this process.
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to end with the test")?;
    enter(&group, &namespace)?;
    match mode.to_str() {
        Some("serve") => serve(),
        Some("run") => run(arguments.collect()),
        _ => bail!("unknown mode {}", mode.display()),
    }
}

fn enter(group: &OsStr, namespace: &OsStr) -> Result<()> {
    if group != "-" {
        cgroup::enter(Path::new(group), 0)?;
    }
    if namespace != "-" {
        let file = File::open(namespace).with_context(|| format!("opening {}", namespace.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("entering {}", namespace.display()))?;
    }
    Ok(())
}

fn run(words: Vec<OsString>) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program given")?;
    setsid().context("starting a session")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("starting {}", program.display()))
}

fn serve() -> Result<()> {
    let mut client = Inside::default();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line.context("reading a request")?;
        let request: Request = serde_json::from_str(&line).with_context(|| format!("understanding {line:?}"))?;
        let reply = client.answer(request).map_err(|error| errno_of(&error));
        let mut line = serde_json::to_string(&reply).context("writing a reply")?;
        line.push('\n');
        output.write_all(line.as_bytes()).context("sending a reply")?;
        output.flush().context("sending a reply")?;
    }
    Ok(())
}

#[derive(Default)]
struct Inside {
    next: u64,
    sockets: BTreeMap<u64, Socket>,
    loads: Loads,
}

enum Socket {
    Stream(Lines),
    Datagrams(UdpSocket),
}

impl Inside {
    fn answer(&mut self, request: Request) -> io::Result<Reply> {
        match request {
            Request::Hello => return Ok(Reply::Done),
            Request::Place => return Ok(Reply::Place { place: place()? }),
            Request::Connect { to, options } => {
                let socket = Socket::Stream(Lines::new(open_stream(to, &options)?));
                return Ok(self.keep(socket));
            }
            Request::Datagrams { to, options } => {
                let socket = Socket::Datagrams(open_datagrams(to, &options)?);
                return Ok(self.keep(socket));
            }
            Request::Reconnect { handle, to } => self.socket(handle)?.reconnect(to)?,
            Request::Send { handle, data, to } => self.socket(handle)?.send(&data, to)?,
            Request::Receive { handle } => return self.socket(handle)?.receive(),
            Request::ReadLine { handle } => return self.socket(handle)?.read_line(),
            Request::PeerAddress { handle } => {
                return Ok(Reply::Address { address: self.socket(handle)?.peer()? });
            }
            Request::LocalAddress { handle } => {
                return Ok(Reply::Address { address: self.socket(handle)?.local()? });
            }
            Request::SetMark { handle, mark } => self.socket(handle)?.options().set_mark(mark)?,
            Request::TakeError { handle } => {
                let waiting = self.socket(handle)?.options().take_error()?;
                return Ok(Reply::Errno { errno: waiting.map(|error| errno_of(&error)) });
            }
            Request::Shutdown { handle } => self.socket(handle)?.options().shutdown(std::net::Shutdown::Write)?,
            Request::Close { handle } => {
                self.sockets.remove(&handle);
            }
            Request::Run { load } => {
                let handle = self.loads.begin(load)?;
                return Ok(Reply::Report { report: self.loads.wait(handle)? });
            }
            Request::Begin { load } => return Ok(Reply::Handle { handle: self.loads.begin(load)? }),
            Request::Progress { handle } => return Ok(Reply::Count { count: self.loads.progress(handle)? }),
            Request::End { handle } => return Ok(Reply::Report { report: self.loads.end(handle)? }),
        }
        Ok(Reply::Done)
    }

    fn keep(&mut self, socket: Socket) -> Reply {
        self.next += 1;
        self.sockets.insert(self.next, socket);
        Reply::Handle { handle: self.next }
    }

    fn socket(&mut self, handle: u64) -> io::Result<&mut Socket> {
        self.sockets.get_mut(&handle).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))
    }
}

impl Socket {
    fn options(&self) -> SockRef<'_> {
        match self {
            Self::Stream(lines) => SockRef::from(lines.stream()),
            Self::Datagrams(socket) => SockRef::from(socket),
        }
    }

    fn reconnect(&mut self, to: Option<SocketAddr>) -> io::Result<()> {
        match to {
            Some(to) => self.options().connect(&SockAddr::from(to)),
            None => disconnect(&self.options()),
        }
    }

    fn send(&mut self, data: &str, to: Option<SocketAddr>) -> io::Result<()> {
        match (self, to) {
            (Self::Stream(lines), _) => lines.stream().write_all(data.as_bytes()),
            (Self::Datagrams(socket), Some(to)) => socket.send_to(data.as_bytes(), to).map(drop),
            (Self::Datagrams(socket), None) => socket.send(data.as_bytes()).map(drop),
        }
    }

    fn receive(&mut self) -> io::Result<Reply> {
        match self {
            Self::Stream(_) => Err(io::Error::from_raw_os_error(libc::EPROTOTYPE)),
            Self::Datagrams(socket) => {
                let mut buffer = vec![0; 65_536];
                let (length, from) = socket.recv_from(&mut buffer)?;
                let data = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
                Ok(Reply::Data { data, from: Some(from) })
            }
        }
    }

    fn read_line(&mut self) -> io::Result<Reply> {
        match self {
            Self::Stream(lines) => Ok(Reply::Data { data: lines.next()?, from: None }),
            Self::Datagrams(_) => Err(io::Error::from_raw_os_error(libc::EPROTOTYPE)),
        }
    }

    fn peer(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Stream(lines) => lines.stream().peer_addr(),
            Self::Datagrams(socket) => socket.peer_addr(),
        }
    }

    fn local(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Stream(lines) => lines.stream().local_addr(),
            Self::Datagrams(socket) => socket.local_addr(),
        }
    }
}

/// connect() with AF_UNSPEC, for which the standard library has no name.
#[allow(unsafe_code)]
fn disconnect(socket: &SockRef<'_>) -> io::Result<()> {
    let nowhere = libc::sockaddr { sa_family: 0, sa_data: [0; 14] };
    let length = libc::socklen_t::try_from(size_of_val(&nowhere)).unwrap_or(0);
    // SAFETY: the pointer and the length describe `nowhere`, which lives until the call returns; the kernel only reads.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Where this process really is, as a test of the harness sees it.
fn place() -> io::Result<BTreeMap<String, String>> {
    let namespace = fs::read_link("/proc/self/ns/net")?;
    let groups = fs::read_to_string("/proc/self/cgroup")?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
    Ok(BTreeMap::from([
        ("namespace".to_owned(), namespace.to_string_lossy().into_owned()),
        ("cgroup".to_owned(), group.to_owned()),
    ]))
}

/// The number that the system gave; EIO for what no system call said.
pub(super) fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
