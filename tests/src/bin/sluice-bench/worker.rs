//! The process that makes the measured calls. It sits in the cgroup and the namespace of its case, and does one task for
//! each line on its standard input. Where a task needs the other end of a connection, this thread plays it too: with no
//! second thread to wake up, what is measured is the work and not the scheduler.

use std::{
    fs,
    io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, ChildStdout, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, getrlimit, setrlimit},
        socket::{
            AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, SockaddrStorage, connect,
            getpeername, recv, recvfrom, recvmsg, send, sendmsg, sendto, setsockopt, socket, sockopt,
        },
    },
};
use serde::{Deserialize, Serialize};
use sluice_tests::{Cgroup, Namespace, program};

use crate::report::Samples;

/// Port on which every backend of the bench listens.
pub const PORT: u16 = 8080;

/// What a worker does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Task {
    /// connect() of one datagram socket, again and again.
    UdpConnects { to: Vec<SocketAddr>, calls: u64 },
    /// socket(), connect() and close() of datagram sockets.
    UdpSockets { to: Vec<SocketAddr>, calls: u64 },
    /// TCP connections from socket() to both close(), accepted by this thread.
    TcpConnections { to: Vec<SocketAddr>, calls: u64 },
    /// getpeername() of one TCP connection.
    PeerNames { to: SocketAddr, calls: u64 },
    /// sendto() from a socket without a peer, an answer, and its receipt.
    Exchanges { to: Vec<SocketAddr>, calls: u64 },
    /// TCP connections to a server on another thread, opened and closed by turns for some time, with a pause after each.
    Connections { to: Vec<SocketAddr>, threads: u64, millis: u64, pause_micros: u64 },
    /// Sends over one TCP connection for some time; `calls` of the answer are bytes.
    Stream { to: SocketAddr, millis: u64 },
    /// One byte there and one back over one TCP connection.
    RoundTrips { to: SocketAddr, calls: u64 },
    /// Opens connections and keeps both ends of them: idle ones have had an answer, busy ones wait for their second.
    Hold { to: SocketAddr, idle: u64, busy: u64 },
    /// Answers everything that is busy.
    Answer,
    /// Closes what is kept.
    Release,
}

/// What became of a task.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// How many calls were made.
    pub calls: u64,
    /// How many a second.
    pub rate: f64,
    /// Nanoseconds of one. Of short series of calls this is the median one: that something else had the processor for a
    /// while shows in few of them.
    pub each: f64,
}

impl Answer {
    fn new(calls: u64, time: Duration) -> Self {
        let nanos = time.as_nanos() as f64;
        Self { calls, rate: calls as f64 * 1e9 / nanos, each: nanos / calls as f64 }
    }
}

/// Calls in a series.
const SERIES: u64 = 20;

/// A running worker. Dropping it ends the process.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one. What listens for it belongs to no cgroup of the bench, as a server on another host would.
    pub fn start(cgroup: &Cgroup, namespace: &Namespace) -> Result<Self> {
        let bench = std::env::current_exe().context("finding the running program")?;
        let words = [bench.as_os_str(), "worker".as_ref(), cgroup.path().as_os_str()];
        let mut command = program::command(None, Some(namespace), &words)?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a worker")?;
        let requests = child.stdin.take().context("a worker has no input")?;
        let answers = BufReader::new(child.stdout.take().context("a worker has no output")?);
        let mut worker = Self { child, requests, answers };
        worker.read().context("waiting for a worker")?;
        Ok(worker)
    }

    /// Does a task.
    pub fn run(&mut self, task: &Task) -> Result<Answer> {
        let line = serde_json::to_string(task).context("writing down a task")?;
        writeln!(self.requests, "{line}").context("giving a worker its task")?;
        self.read().with_context(|| format!("doing {line:.80}"))
    }

    fn read(&mut self) -> Result<Answer> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("reading a worker's answer")?;
        let answer: Result<Answer, String> = serde_json::from_str(&line).context("a worker has ended")?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's process: the argument is its cgroup.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let cgroup = PathBuf::from(arguments.next().context("no cgroup given")?);
    let inside = Inside::new()?;
    enter(&cgroup)?;
    let mut output = io::stdout().lock();
    let mut answer = |answer: Result<Answer, String>| -> Result<()> {
        writeln!(output, "{}", serde_json::to_string(&answer)?).context("answering")
    };
    answer(Ok(Answer::default()))?;
    for line in io::stdin().lock().lines() {
        let task = serde_json::from_str(&line.context("reading a task")?).context("understanding a task")?;
        answer(inside.run(&task).map_err(|error| format!("{error:#}")))?;
    }
    Ok(())
}

fn enter(cgroup: &Path) -> Result<()> {
    let file = cgroup.join("cgroup.procs");
    fs::write(&file, process::id().to_string()).with_context(|| format!("entering {}", cgroup.display()))
}

/// The other ends: made before the process enters its cgroup, so that they do not belong to it.
struct Inside {
    listener: TcpListener,
    echo: UdpSocket,
    held: Mutex<Vec<Held>>,
}

/// Both ends of a connection that is kept.
struct Held {
    ours: OwnedFd,
    theirs: TcpStream,
    is_busy: bool,
}

impl Held {
    fn ask(&self) -> Result<()> {
        send(self.ours.as_raw_fd(), b"?", MsgFlags::empty()).context("asking").map(drop)
    }

    fn answer(&mut self) -> Result<()> {
        self.theirs.read_exact(&mut [0]).and_then(|()| self.theirs.write_all(b"!")).context("answering")?;
        recv(self.ours.as_raw_fd(), &mut [0], MsgFlags::empty()).context("reading an answer").map(drop)
    }
}

impl Inside {
    fn new() -> Result<Self> {
        // IPv4 comes to it too.
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).context("listening")?;
        let echo = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("binding an echo")?;
        setsockopt(&echo, sockopt::Ipv4PacketInfo, &true).context("asking where datagrams were sent to")?;
        // Files for many connections, as far as the system allows.
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("asking for a limit")?;
        setrlimit(Resource::RLIMIT_NOFILE, most, most).context("raising a limit")?;
        Ok(Self { listener, echo, held: Mutex::default() })
    }

    fn run(&self, task: &Task) -> Result<Answer> {
        match task {
            Task::UdpConnects { to, calls } => {
                let to = Targets::new(to)?;
                let socket = open(&to.first, SockType::Datagram)?;
                timed(*calls, |i| connect(socket.as_raw_fd(), to.at(i)))
            }
            Task::UdpSockets { to, calls } => {
                let to = Targets::new(to)?;
                timed(*calls, |i| {
                    let socket = open(&to.first, SockType::Datagram)?;
                    connect(socket.as_raw_fd(), to.at(i))
                })
            }
            Task::TcpConnections { to, calls } => {
                let to = Targets::new(to)?;
                timed(*calls, |i| self.connection(to.at(i)).map(drop))
            }
            Task::PeerNames { to, calls } => {
                let (ours, _theirs) = self.connection(&SockaddrStorage::from(*to))?;
                timed(*calls, |_| getpeername::<SockaddrStorage>(ours.as_raw_fd()).map(drop))
            }
            Task::Exchanges { to, calls } => {
                let to = Targets::new(to)?;
                let socket = open(&to.first, SockType::Datagram)?;
                timed(*calls, |i| {
                    sendto(socket.as_raw_fd(), b"?", to.at(i), MsgFlags::empty())?;
                    self.answer()?;
                    let mut buffer = [0; 8];
                    // With the address, as it is that which is translated.
                    recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut buffer).map(drop)
                })
            }
            Task::Connections { to, threads, millis, pause_micros } => {
                let (time, pause) = (Duration::from_millis(*millis), Duration::from_micros(*pause_micros));
                let to = Targets::new(to)?;
                self.served(drop, || connections(&to, *threads, time, pause))
            }
            Task::Stream { to, millis } => self.served(sink, || stream(*to, Duration::from_millis(*millis))),
            Task::RoundTrips { to, calls } => self.served(echo, || round_trips(*to, *calls)),
            Task::Hold { to, idle, busy } => {
                let to = SockaddrStorage::from(*to);
                timed(idle + busy, |number| {
                    let (ours, theirs) = self.connection(&to)?;
                    let mut held = Held { ours, theirs, is_busy: number >= *idle };
                    held.ask().and_then(|()| held.answer())?;
                    if held.is_busy {
                        held.ask()?;
                    }
                    self.held().push(held);
                    anyhow::Ok(())
                })
            }
            Task::Answer => {
                let (start, mut held) = (Instant::now(), self.held());
                for held in held.iter_mut().filter(|held| held.is_busy) {
                    held.answer()?;
                    held.is_busy = false;
                }
                Ok(Answer::new(held.len() as u64, start.elapsed()))
            }
            Task::Release => {
                let (start, held) = (Instant::now(), std::mem::take(&mut *self.held()));
                Ok(Answer::new(held.len() as u64, start.elapsed()))
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both ends of a new connection; dropped in this order, so that the client closes first.
    fn connection(&self, to: &SockaddrStorage) -> Result<(OwnedFd, TcpStream)> {
        let family = if to.as_sockaddr_in().is_some() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let ours = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("making a socket")?;
        connect(ours.as_raw_fd(), to).context("connecting")?;
        let (theirs, _) = self.listener.accept().context("accepting")?;
        Ok((ours, theirs))
    }

    /// Does a task while another thread serves connections one after the other.
    fn served(&self, serve: fn(TcpStream), task: impl FnOnce() -> Result<Answer>) -> Result<Answer> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for stream in self.listener.incoming().flatten() {
                    if stop.load(Ordering::SeqCst) {
                        break;
                    }
                    serve(stream);
                }
            });
            let answer = task();
            stop.store(true, Ordering::SeqCst);
            // One more connection, so that the server looks.
            let woken = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("ending the server");
            answer.and_then(|answer| woken.map(|_| answer))
        })
    }

    /// Answers one datagram from the address that it was sent to.
    fn answer(&self) -> nix::Result<()> {
        let mut buffer = [0; 8];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!(libc::in_pktinfo);
        let echo = self.echo.as_raw_fd();
        let message = recvmsg::<SockaddrStorage>(echo, &mut parts, Some(&mut space), MsgFlags::empty())?;
        let source = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(info),
            _ => None,
        });
        let info = source.ok_or(Errno::EBADMSG)?;
        let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: info.ipi_addr, ipi_addr: info.ipi_addr };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        sendmsg(echo, &[IoSlice::new(b"!")], &control, MsgFlags::empty(), message.address.as_ref()).map(drop)
    }
}

/// Destinations, ready for the kernel, in an order that no cache foresees.
struct Targets {
    first: SocketAddr,
    addresses: Vec<SockaddrStorage>,
}

impl Targets {
    fn new(to: &[SocketAddr]) -> Result<Self> {
        let first = *to.first().context("no destination given")?;
        Ok(Self { first, addresses: to.iter().copied().map(SockaddrStorage::from).collect() })
    }

    fn at(&self, call: u64) -> &SockaddrStorage {
        // A prime larger than any number of services steps through all of them, far apart.
        let index = call.wrapping_mul(15_485_863) % self.addresses.len() as u64;
        &self.addresses[index as usize]
    }
}

fn open(like: &SocketAddr, kind: SockType) -> nix::Result<OwnedFd> {
    let family = if like.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    socket(family, kind, SockFlag::SOCK_CLOEXEC, None)
}

fn timed<E>(calls: u64, mut call: impl FnMut(u64) -> Result<(), E>) -> Result<Answer>
where
    Result<(), E>: Context<(), E>,
{
    let mut series = Samples::default();
    let start = Instant::now();
    let mut before = start;
    for i in 0..calls {
        call(i).with_context(|| format!("call {i}"))?;
        if (i + 1) % SERIES == 0 {
            let now = Instant::now();
            series.push((now - before).as_nanos() as f64 / SERIES as f64);
            before = now;
        }
    }
    Ok(Answer { each: series.quantile(0.5), ..Answer::new(calls, start.elapsed()) })
}

fn sink(mut stream: TcpStream) {
    let mut buffer = vec![0; 128 * 1024];
    while stream.read(&mut buffer).is_ok_and(|length| length > 0) {}
}

fn echo(mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut byte = [0];
    while stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte)).is_ok() {}
}

fn connections(to: &Targets, threads: u64, time: Duration, pause: Duration) -> Result<Answer> {
    let start = Instant::now();
    let work = |thread: u64| -> nix::Result<u64> {
        let mut calls = 0;
        while start.elapsed() < time {
            let socket = open(&to.first, SockType::Stream)?;
            connect(socket.as_raw_fd(), to.at(calls * threads + thread))?;
            // Until the server has taken and closed it: a backlog that only grows would measure nothing.
            recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty())?;
            calls += 1;
            if !pause.is_zero() {
                thread::sleep(pause);
            }
        }
        Ok(calls)
    };
    let calls = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let work = &work;
                scope.spawn(move || work(thread))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or(Err(Errno::ECANCELED))).sum::<nix::Result<u64>>()
    });
    Ok(Answer::new(calls.context("opening connections")?, start.elapsed()))
}

fn stream(to: SocketAddr, time: Duration) -> Result<Answer> {
    let mut stream = TcpStream::connect(to).context("connecting")?;
    let block = vec![0; 128 * 1024];
    let (start, mut sent) = (Instant::now(), 0);
    while start.elapsed() < time {
        sent += stream.write(&block).context("sending")? as u64;
    }
    Ok(Answer::new(sent, start.elapsed()))
}

fn round_trips(to: SocketAddr, calls: u64) -> Result<Answer> {
    let mut stream = TcpStream::connect(to).context("connecting")?;
    stream.set_nodelay(true).context("setting up a socket")?;
    timed(calls, |_| {
        stream.write_all(b"?").context("sending")?;
        stream.read_exact(&mut [0]).context("receiving")
    })
}
