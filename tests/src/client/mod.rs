//! Clients: processes inside a cgroup and a namespace that connect, send and receive as a test tells them to.
//! A process, because a cgroup of version 2 steers whole processes. Errors come back as the exact errno.
//! `protocol` is what both sides say, `inside` is the process, `load` is what it does thousands of times.

pub mod inside;
mod load;
mod protocol;
mod sockets;
mod worker;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::errno::Errno;

use crate::{Cgroup, Namespace, program::place, system::companion};
pub use load::{Attempt, Load, Report, Work};
pub use protocol::{Options, Transport};
use protocol::{Reply, Request};
pub use sockets::{Connection, Datagrams};

/// A client process. Dropping it ends the process and with it every socket.
#[derive(Debug)]
pub struct Client {
    child: Child,
    pipes: Mutex<Pipes>,
}

#[derive(Debug)]
struct Pipes {
    requests: ChildStdin,
    replies: BufReader<ChildStdout>,
}

impl Client {
    /// Starts a client inside; without cgroup or namespace it stays in the test's own.
    pub fn start(cgroup: Option<&Cgroup>, namespace: Option<&Namespace>) -> Result<Self> {
        let mut command = Command::new(program()?);
        command.arg("serve").args(place(cgroup, namespace));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting a client")?;
        let requests = child.stdin.take().context("a client has no input")?;
        let replies = BufReader::new(child.stdout.take().context("a client has no output")?);
        let client = Self { child, pipes: Mutex::new(Pipes { requests, replies }) };
        // It answers once it is where it should be.
        client.done(&Request::Hello).context("greeting a client")?;
        Ok(client)
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Opens a TCP connection.
    pub fn connect(&self, to: &str) -> Result<Connection<'_>, Errno> {
        self.connect_with(to, &Options::default())
    }

    /// Opens a TCP connection with a source address, a mark and so on.
    pub fn connect_with(&self, to: &str, options: &Options) -> Result<Connection<'_>, Errno> {
        let request = Request::Connect { to: address(to), options: options.clone() };
        Ok(Connection::new(self, self.handle(&request)?))
    }

    /// Opens a UDP socket that is not connected. `any` chooses the family: `0.0.0.0:0` or `[::]:0`.
    pub fn datagrams(&self, any: &str) -> Result<Datagrams<'_>, Errno> {
        self.datagrams_with(&Options::default().from(any), None)
    }

    /// Opens a UDP socket that is connected to an address.
    pub fn datagrams_to(&self, to: &str) -> Result<Datagrams<'_>, Errno> {
        self.datagrams_with(&Options::default(), Some(to))
    }

    /// Opens a UDP socket with a source address, a mark and so on. At least one of the two says the family.
    pub fn datagrams_with(&self, options: &Options, to: Option<&str>) -> Result<Datagrams<'_>, Errno> {
        let request = Request::Datagrams { to: to.map(address), options: options.clone() };
        Ok(Datagrams::new(self, self.handle(&request)?))
    }

    /// Connects `count` times, one after the other, and counts who answers.
    pub fn spread(&self, to: &str, count: u64) -> Report {
        self.run(&Load::connects(to).count(count))
    }

    /// Does many connects or exchanges and waits for the end.
    pub fn run(&self, load: &Load) -> Report {
        self.report(&Request::Run { load: load.clone() })
    }

    /// Starts connects or exchanges that go on while the test does something else.
    pub fn begin(&self, load: &Load) -> Running<'_> {
        match self.handle(&Request::Begin { load: load.clone() }) {
            Ok(handle) => Running { client: self, handle },
            Err(errno) => panic!("a load does not start: {errno}"),
        }
    }

    /// The inode number of the namespace and the cgroup path that the client sees itself in.
    pub fn place(&self) -> BTreeMap<String, String> {
        match self.ask(&Request::Place) {
            Ok(Reply::Place { place }) => place,
            other => unexpected(&other),
        }
    }

    fn done(&self, request: &Request) -> Result<(), Errno> {
        match self.ask(request)? {
            Reply::Done => Ok(()),
            other => unexpected(&Ok(other)),
        }
    }

    fn handle(&self, request: &Request) -> Result<u64, Errno> {
        match self.ask(request)? {
            Reply::Handle { handle } => Ok(handle),
            other => unexpected(&Ok(other)),
        }
    }

    fn report(&self, request: &Request) -> Report {
        match self.ask(request) {
            Ok(Reply::Report { report }) => report,
            other => unexpected(&other),
        }
    }

    /// One request, one reply. A client that is gone or talks nonsense ends the test.
    fn ask(&self, request: &Request) -> Result<Reply, Errno> {
        let mut pipes = self.pipes.lock().unwrap_or_else(PoisonError::into_inner);
        match pipes.ask(request) {
            Ok(answer) => answer.map_err(Errno::from_raw),
            Err(error) => panic!("client {}: {error:#}", self.id()),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pipes {
    fn ask(&mut self, request: &Request) -> Result<Result<Reply, i32>> {
        let mut line = serde_json::to_string(request).context("writing a request")?;
        line.push('\n');
        self.requests.write_all(line.as_bytes()).context("sending a request")?;
        line.clear();
        self.replies.read_line(&mut line).context("reading a reply")?;
        serde_json::from_str(&line).with_context(|| format!("understanding the reply {line:?} to {request:?}"))
    }
}

/// A load that goes on. Dropping it stops it.
#[derive(Debug)]
pub struct Running<'a> {
    client: &'a Client,
    handle: u64,
}

impl Running<'_> {
    /// Waits until at least `count` attempts are done since the start.
    pub fn reached(&self, count: u64, limit: Duration) -> Result<()> {
        crate::system::eventually("the load goes on", limit, || (self.attempts() >= count).then_some(()))
    }

    /// How many attempts are done.
    pub fn attempts(&self) -> u64 {
        match self.client.ask(&Request::Progress { handle: self.handle }) {
            Ok(Reply::Count { count }) => count,
            other => unexpected(&other),
        }
    }

    /// Stops it and returns what happened.
    pub fn stop(self) -> Report {
        let report = self.client.report(&Request::End { handle: self.handle });
        std::mem::forget(self);
        report
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // A client that is gone has stopped already; a panic here could be the second one.
        if !std::thread::panicking() {
            self.client.report(&Request::End { handle: self.handle });
        }
    }
}

/// The client program: beside the tests, or where SLUICE_TEST_CLIENT says.
pub(crate) fn program() -> Result<PathBuf> {
    companion("sluice-test-client", "SLUICE_TEST_CLIENT")
}

fn address(text: &str) -> SocketAddr {
    match text.parse() {
        Ok(address) => address,
        Err(error) => panic!("{text:?} in a test: {error}"),
    }
}

fn unexpected(answer: &Result<Reply, Errno>) -> ! {
    panic!("a client answered {answer:?}")
}
