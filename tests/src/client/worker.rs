//! Sockets and loads inside the client process.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};

use super::{
    inside::errno_of,
    load::{Attempt, Load, Report, Work},
    protocol::{Options, Transport},
};
use crate::system::now;

/// IPPROTO_MPTCP of linux/in.h.
const MPTCP: i32 = 262;

/// Makes a stream socket and connects it.
pub(super) fn open_stream(to: SocketAddr, options: &Options) -> io::Result<TcpStream> {
    let protocol = match options.transport {
        Transport::Tcp | Transport::FastOpen => Protocol::TCP,
        Transport::Mptcp => Protocol::from(MPTCP),
    };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    prepare(&socket, options)?;
    if options.reset {
        socket.set_linger(Some(Duration::ZERO))?;
    }
    if let Some(seconds) = options.keepalive {
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_secs(seconds)))?;
    }
    if options.transport == Transport::FastOpen {
        setsockopt(&socket, sockopt::TcpFastOpenConnect, &true)?;
    }
    socket.connect(&SockAddr::from(to)).map_err(|error| match error.raw_os_error() {
        // What a blocking connect says when its time limit is over.
        Some(libc::EINPROGRESS) => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        _ => error,
    })?;
    Ok(socket.into())
}

/// Makes a datagram socket, connected if there is an address.
pub(super) fn open_datagrams(to: Option<SocketAddr>, options: &Options) -> io::Result<UdpSocket> {
    let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    let family = Domain::for_address(options.from.or(to).unwrap_or(any));
    let socket = Socket::new(family, Type::DGRAM, Some(Protocol::UDP))?;
    if family == Domain::IPV6 {
        // Mapped IPv4 addresses work whatever the machine's default is.
        socket.set_only_v6(false)?;
    }
    prepare(&socket, options)?;
    if options.from.is_none() && to.is_none() {
        socket.bind(&SockAddr::from(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))))?;
    }
    if let Some(to) = to {
        socket.connect(&SockAddr::from(to))?;
    }
    Ok(socket.into())
}

fn prepare(socket: &Socket, options: &Options) -> io::Result<()> {
    let limit = Some(Duration::from_millis(options.millis));
    socket.set_read_timeout(limit)?;
    // Bounds connect too.
    socket.set_write_timeout(limit)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    if let Some(from) = options.from {
        socket.set_reuse_address(true)?;
        socket.bind(&SockAddr::from(from))?;
    }
    Ok(())
}

/// A stream that is read line by line.
pub(super) struct Lines {
    stream: TcpStream,
    waiting: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, waiting: Vec::new() }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next line without its end; ENODATA when the peer has closed.
    pub(super) fn next(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.waiting.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.waiting.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
            let mut buffer = [0; 2048];
            let length = (&self.stream).read(&mut buffer)?;
            if length == 0 {
                return Err(io::Error::from_raw_os_error(libc::ENODATA));
            }
            self.waiting.extend(buffer.iter().take(length));
        }
    }

    /// Whether the peer has closed or reset the connection while nobody was reading.
    fn is_stale(&self) -> bool {
        let peek = recv(self.stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT);
        !matches!(peek, Err(Errno::EAGAIN))
    }
}

/// The loads of one client.
#[derive(Default)]
pub(super) struct Loads {
    next: u64,
    running: BTreeMap<u64, Running>,
}

struct Running {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Vec<Attempt>>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    begun: AtomicU64,
    done: AtomicU64,
}

impl Loads {
    pub(super) fn begin(&mut self, load: Load) -> io::Result<u64> {
        let shared = Arc::new(Shared::default());
        let load = Arc::new(load);
        let mut threads = Vec::new();
        for _ in 0..load.threads.max(1) {
            let (load, shared) = (Arc::clone(&load), Arc::clone(&shared));
            threads.push(thread::Builder::new().spawn(move || work(&load, &shared))?);
        }
        self.next += 1;
        self.running.insert(self.next, Running { shared, threads });
        Ok(self.next)
    }

    pub(super) fn progress(&self, handle: u64) -> io::Result<u64> {
        let running = self.running.get(&handle).ok_or_else(unknown)?;
        Ok(running.shared.done.load(Ordering::SeqCst))
    }

    /// Stops a load and reports.
    pub(super) fn end(&mut self, handle: u64) -> io::Result<Report> {
        self.running.get(&handle).ok_or_else(unknown)?.shared.stop.store(true, Ordering::SeqCst);
        self.wait(handle)
    }

    /// Waits until a load is through and reports.
    pub(super) fn wait(&mut self, handle: u64) -> io::Result<Report> {
        let running = self.running.remove(&handle).ok_or_else(unknown)?;
        let mut attempts = Vec::new();
        for thread in running.threads {
            attempts.extend(thread.join().map_err(|_| io::Error::other("a thread of a load panicked"))?);
        }
        attempts.sort_by_key(|attempt| attempt.start_micros);
        Ok(Report { attempts })
    }
}

fn unknown() -> io::Error {
    io::Error::from_raw_os_error(libc::EBADF)
}

fn work(load: &Load, shared: &Shared) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    let mut kept = None;
    let limit = load.count.unwrap_or(u64::MAX);
    while !shared.stop.load(Ordering::SeqCst) && shared.begun.fetch_add(1, Ordering::SeqCst) < limit {
        let start_micros = micros();
        let result = match load.work {
            Work::Connect => connect_once(load),
            Work::Exchange => exchange_once(load, &mut kept),
        };
        let (server, errno) = match result {
            Ok(server) => (Some(server), None),
            Err(error) => (None, Some(errno_of(&error))),
        };
        attempts.push(Attempt { start_micros, end_micros: micros(), server, errno });
        shared.done.fetch_add(1, Ordering::SeqCst);
        if load.pause_micros > 0 {
            thread::sleep(Duration::from_micros(load.pause_micros));
        }
    }
    attempts
}

fn connect_once(load: &Load) -> io::Result<String> {
    Lines::new(open_stream(load.to, &load.options)?).next()
}

/// The server's name from an answer "name: request" over a connection that is kept if all went well.
fn exchange_once(load: &Load, kept: &mut Option<Lines>) -> io::Result<String> {
    let mut lines = match kept.take().filter(|lines| !lines.is_stale()) {
        Some(lines) => lines,
        None => {
            let mut lines = Lines::new(open_stream(load.to, &load.options)?);
            lines.next()?;
            lines
        }
    };
    (&lines.stream).write_all(b"request\n")?;
    let answer = lines.next()?;
    let name = answer.strip_suffix(": request").ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))?;
    *kept = Some(lines);
    Ok(name.to_owned())
}

fn micros() -> u64 {
    u64::try_from(now().as_micros()).unwrap_or(u64::MAX)
}
