//! Who runs: each candidate steers the clients of a host of its own, and is told the same in its own language.

mod direct;
mod haproxy;
mod ipvs;
mod nftables;
mod nginx;
mod sluice;

use std::{
    net::SocketAddr,
    process::{Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::de::DeserializeOwned;

use super::{
    load::Work,
    setup::Service,
    topology::{Host, Network},
};

/// What is compared.
pub trait Candidate {
    /// As the report calls it.
    fn name(&self) -> &'static str;

    /// Of the program or the kernel's part that steers.
    fn version(&self) -> String;

    /// Where its clients are.
    fn host(&mut self) -> &mut Host;

    /// Holds these services and no others, and no node is at zero; returns how long that took, from the moment that the
    /// configuration is there in memory to the moment that it serves.
    fn load(&mut self, services: &[Service]) -> Result<Load>;

    /// Where clients connect to.
    fn targets(&self, service: &Service) -> Vec<SocketAddr> {
        vec![service.frontend()]
    }

    /// By what a node can be zeroed; the first is the usual one. None: it cannot.
    fn ways(&self) -> &'static [&'static str];

    /// Sends no new connection to a node, for any service; returns when it says so.
    fn zero(&mut self, node: usize, way: &str) -> Result<()>;

    /// Takes nodes back.
    fn restore(&mut self) -> Result<()>;

    /// How it rids a node of connections that clients keep, in words; None: it cannot.
    fn drains_by(&self) -> Option<&'static str> {
        None
    }

    /// Makes that possible, before there are clients.
    fn prepare_drain(&mut self) -> Result<()> {
        Ok(())
    }

    /// Begins to do so.
    fn drain(&mut self, _node: usize) -> Result<()> {
        Ok(())
    }

    /// Bytes of memory: of its processes and, for what steers in the kernel, of the kernel.
    fn memory(&mut self) -> Result<u64>;

    /// Whether that is all that the kernel has grown by, whoever it was for.
    fn memory_is_coarse(&self) -> bool {
        false
    }
}

/// How long it takes to load services.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// With the start of the process, where there is one.
    pub cold: Duration,
    /// Into a process that runs; None: where no process stays, or it starts anew for services.
    pub running: Option<Duration>,
}

impl Load {
    /// With the start of a process.
    fn cold(cold: Duration) -> Self {
        Self { cold, running: None }
    }
}

/// Does something while clients work. They end also where it fails.
pub fn meanwhile<T, A: DeserializeOwned>(
    candidate: &mut dyn Candidate,
    work: Work,
    act: impl FnOnce(&mut dyn Candidate) -> Result<T>,
) -> Result<(T, A)> {
    candidate.host().begin(work)?;
    let done = act(candidate);
    let seen = candidate.host().end();
    Ok((done?, seen?))
}

/// Makes a candidate on a host of its own.
type Make = fn(&Network, usize) -> Result<Box<dyn Candidate>>;

/// Every candidate, by the name that `--only` takes.
pub const CANDIDATES: [(&str, Make); 7] = [
    ("direct", |network, number| Ok(Box::new(direct::Direct::new(network, number)?))),
    ("sluice", |network, number| Ok(Box::new(sluice::Sluice::new(network, number)?))),
    ("nftables", |network, number| Ok(Box::new(nftables::Nftables::new(network, number)?))),
    ("ipvs-nat", |network, number| Ok(Box::new(ipvs::Ipvs::new(network, number, ipvs::Forward::Masquerade)?))),
    ("ipvs-dr", |network, number| Ok(Box::new(ipvs::Ipvs::new(network, number, ipvs::Forward::Route)?))),
    ("haproxy", |network, number| Ok(Box::new(haproxy::Haproxy::new(network, number)?))),
    ("nginx", |network, number| Ok(Box::new(nginx::Nginx::new(network, number)?))),
];

/// How long a command may take. A `timeout` before it would add a start of a process to what is measured.
const LONGEST: Duration = Duration::from_secs(300);

/// Runs a command in a host's namespace with this input; an error if it fails or takes longer than [`LONGEST`].
fn fed(host: &Host, words: &[&str], input: &str) -> Result<String> {
    let (program, arguments) = words.split_first().context("no command")?;
    let child = host.namespace.run(|| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    });
    let mut child = child.with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("a command without input")?;
    let (done, ended) = channel::<()>();
    let process = Pid::from_raw(child.id().cast_signed());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if ended.recv_timeout(LONGEST) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(process, Signal::SIGKILL);
            }
        });
        // A command that ends early tells why.
        scope.spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
        let output = child.wait_with_output();
        drop(done);
        let output = output.context("waiting for a command")?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "{}: {:.500}", words.join(" "), said.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    })
}

/// The first line that a program says about itself.
fn version_of(words: &[&str]) -> String {
    let Some((program, arguments)) = words.split_first() else { return String::new() };
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&text).lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").to_owned()
}
