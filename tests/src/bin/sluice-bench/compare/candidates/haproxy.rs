//! HAProxy in TCP mode on the clients' host, changed through its runtime API.

use std::{
    fmt::{self, Write as _},
    fs,
    io::{BufReader, Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use sluice_tests::{Program, daemons::open_directory};
use tempfile::TempDir;

use super::{Candidate, Load, version_of};
use crate::compare::{
    machine::{memory_of_group, processors},
    process::promptly,
    proxy::is_up,
    setup::{NODES, SLOW, Service},
    topology::{Host, Network},
};

const CONFIG: &str = include_str!("../peers/haproxy.cfg");
/// A server's largest weight. A heavier one becomes several servers with the same address.
const HEAVIEST: u32 = 256;
/// Bytes in a line of the runtime API; `tune.bufsize` is 16 KiB.
const LINE: usize = 15_000;
/// Up to this many services each thread has a socket of its own for each of them (`shards by-thread`): beyond, processes
/// run out of open files on usual systems.
const SHARDED: usize = 1000;

/// How long the runtime API may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the checks of the nodes may take.
const CHECKED: Duration = Duration::from_secs(20);
/// The servers of all services track one for each node, which alone is checked, and inherit its state.
const TRACKED: &str = "runtime API, one tracked server";
/// The state of each server is set.
const EACH: &str = "runtime API, each server";

/// A proxy; None before the first services.
pub struct Haproxy {
    program: Option<Program>,
    host: Host,
    directory: TempDir,
    services: Vec<Service>,
    /// Nodes, and by what way.
    zeroed: Vec<(usize, String)>,
}

impl Haproxy {
    /// A host without services.
    pub fn new(network: &Network, number: usize) -> Result<Self> {
        let host = network.host(number, true)?;
        let (services, zeroed) = (Vec::new(), Vec::new());
        Ok(Self { program: None, host, directory: open_directory()?, services, zeroed })
    }

    fn admin(&self) -> Result<UnixStream> {
        let socket = UnixStream::connect(self.directory.path().join("admin.sock")).context("the runtime API")?;
        socket.set_read_timeout(Some(SILENCE)).context("setting up a socket")?;
        socket.set_write_timeout(Some(SILENCE)).context("setting up a socket")?;
        Ok(socket)
    }

    /// Waits until every node has been checked and is up.
    fn checked(&self) -> Result<()> {
        promptly("all nodes are checked", CHECKED, || {
            let mut socket = self.admin().ok()?;
            socket.write_all(b"show stat nodes 4 -1\n").ok()?;
            let mut said = String::new();
            socket.read_to_string(&mut said).ok()?;
            (said.matches(",L4OK,").count() == NODES).then_some(())
        })
    }

    /// Gives commands over one connection: as many in a line as it takes, in the interactive mode that keeps it open.
    fn tell(&self, commands: &[String]) -> Result<()> {
        let mut socket = self.admin()?;
        let mut answers = BufReader::new(socket.try_clone().context("the runtime API")?);
        let mut tell = |commands: &[String]| -> Result<()> {
            writeln!(socket, "{}", commands.join(";")).context("giving commands")?;
            // A prompt ends the answer to each.
            for command in commands {
                let (mut said, mut byte) = (Vec::new(), [0]);
                while !said.ends_with(b"> ") {
                    answers.read_exact(&mut byte).context("reading an answer")?;
                    said.push(byte[0]);
                }
                let said = String::from_utf8_lossy(&said);
                ensure!(said.trim() == ">", "{command}: {said}");
            }
            Ok(())
        };
        tell(&["prompt".to_owned()])?;
        let longest = commands.iter().map(String::len).max().unwrap_or_default() + 1;
        commands.chunks(LINE / longest).try_for_each(tell)
    }

    /// A command for each server on a node.
    fn commands(&self, node: usize, command: impl Fn(String) -> String) -> Vec<String> {
        let mut commands = Vec::new();
        for service in &self.services {
            for (node, weight) in service.weights.iter().filter(|(on, _)| *on == node) {
                let parts = parts(*weight).len();
                commands.extend((0..parts).map(|part| command(format!("s{}/n{node}-{part}", service.number))));
            }
        }
        commands
    }

    fn set(&self, node: usize, way: &str, state: &str) -> Result<()> {
        let command = |server: String| format!("set server {server} state {state}");
        let commands = match way {
            EACH => self.commands(node, command),
            _ => vec![command(format!("nodes/n{node}"))],
        };
        self.tell(&commands)
    }
}

impl Candidate for Haproxy {
    fn name(&self) -> &'static str {
        "HAProxy"
    }

    fn version(&self) -> String {
        version_of(&["haproxy", "-v"])
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, services: &[Service]) -> Result<Load> {
        self.program = None;
        self.services = services.to_vec();
        self.zeroed.clear();
        let root = self.directory.path().to_string_lossy().into_owned();
        let mut text = CONFIG.replace("@ROOT@", &root).replace("@THREADS@", &processors().to_string());
        nodes(&mut text).context("writing a configuration")?;
        let shards = if services.len() <= SHARDED { " shards by-thread" } else { "" };
        let written = services.iter().try_for_each(|service| section(&mut text, service, shards));
        written.context("writing a configuration")?;
        let start = Instant::now();
        let file = self.directory.path().join("haproxy.cfg");
        fs::write(&file, text).context("writing haproxy.cfg")?;
        let file = file.to_string_lossy();
        let mut program = Program::start(None, Some(&self.host.namespace), &["haproxy", "-db", "-q", "-f", &file])?;
        is_up(&self.host, services, &mut program)?;
        let took = start.elapsed();
        self.program = Some(program);
        self.checked()?;
        Ok(Load::cold(took))
    }

    fn ways(&self) -> &'static [&'static str] {
        &[TRACKED, EACH]
    }

    fn zero(&mut self, node: usize, way: &str) -> Result<()> {
        self.zeroed.push((node, way.to_owned()));
        self.set(node, way, "drain")
    }

    fn restore(&mut self) -> Result<()> {
        let nodes = std::mem::take(&mut self.zeroed);
        nodes.iter().try_for_each(|(node, way)| self.set(*node, way, "ready"))
    }

    fn drains_by(&self) -> Option<&'static str> {
        Some("set server … state drain, then shutdown sessions server …")
    }

    fn drain(&mut self, node: usize) -> Result<()> {
        self.zero(node, TRACKED)?;
        // What the manual offers for connections that would stay: at once, whatever they do.
        self.tell(&self.commands(node, |server| format!("shutdown sessions server {server}")))
    }

    fn memory(&mut self) -> Result<u64> {
        let program = self.program.as_ref().context("HAProxy does not run")?;
        memory_of_group(program.id())
    }
}

/// One server for each node. Checks go to another port than the one whose connections are counted.
fn nodes(text: &mut String) -> fmt::Result {
    writeln!(text, "backend nodes")?;
    (0..NODES).try_for_each(|node| {
        let at = Service::even(0, SLOW).backend(node);
        writeln!(text, "    server n{node} {at} check inter 10s")
    })
}

fn section(text: &mut String, service: &Service, shards: &str) -> fmt::Result {
    writeln!(text, "listen s{}\n    bind {}{shards}", service.number, service.frontend())?;
    if service.affinity {
        writeln!(text, "    stick-table type ip size 100k expire 3h\n    stick on src")?;
    }
    for (node, weight) in &service.weights {
        for (part, weight) in parts(*weight).into_iter().enumerate() {
            writeln!(text, "    server n{node}-{part} {} weight {weight} track nodes/n{node}", service.backend(*node))?;
        }
    }
    Ok(())
}

/// A weight as a sum of weights that are near each other and that HAProxy takes.
fn parts(weight: u32) -> Vec<u32> {
    let number = weight.div_ceil(HEAVIEST).max(1);
    (0..number).map(|part| weight / number + u32::from(part < weight % number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heavy_weights_are_divided() {
        assert_eq!(parts(5), [5]);
        assert_eq!(parts(999), [250, 250, 250, 249]);
        assert_eq!(parts(0), [0]);
    }
}
