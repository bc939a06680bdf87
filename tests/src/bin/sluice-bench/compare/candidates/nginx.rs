//! nginx's stream module on the clients' host. The free one changes by a new configuration and a reload.

use std::{
    fmt::{self, Write},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use sluice_tests::{Program, daemons::open_directory};
use tempfile::TempDir;

use super::{Candidate, Load, version_of};
use crate::compare::{
    machine::{children, memory_of_group, processors},
    process::promptly,
    proxy::is_up,
    setup::Service,
    topology::{Host, Network},
};

const CONFIG: &str = include_str!("../peers/nginx.conf");
/// Up to this many services the workers share the state of an upstream (`zone`), so that they count together, and each
/// has a socket of its own for each service (`reuseport`). Beyond, memory and open files run out on usual systems.
const SHARED: usize = 1000;
/// How long a reload may take.
const RELOAD: Duration = Duration::from_secs(60);
/// `worker_shutdown_timeout`: when old workers give up connections that clients keep.
const SHUTDOWN: &str = "2s";

/// A proxy; None before the first services.
pub struct Nginx {
    program: Option<Program>,
    host: Host,
    directory: TempDir,
    services: Vec<Service>,
    zeroed: Vec<usize>,
}

impl Nginx {
    /// A host without services.
    pub fn new(network: &Network, number: usize) -> Result<Self> {
        let host = network.host(number, true)?;
        let (services, zeroed) = (Vec::new(), Vec::new());
        Ok(Self { program: None, host, directory: open_directory()?, services, zeroed })
    }

    /// The configuration.
    fn text(&self, shutdown: &str) -> Result<String> {
        let mut text = String::new();
        let written = self
            .services
            .iter()
            .try_for_each(|service| server(&mut text, service, &self.zeroed, self.services.len() <= SHARED));
        written.context("writing a configuration")?;
        let root = self.directory.path().to_string_lossy().into_owned();
        let config = CONFIG.replace("@ROOT@", &root).replace("@THREADS@", &processors().to_string());
        Ok(config.replace("@SHUTDOWN@", shutdown).replace("@SERVICES@", &text))
    }

    /// Writes the configuration; returns its path.
    fn write(&self, config: &str) -> Result<String> {
        let file = self.directory.path().join("nginx.conf");
        fs::write(&file, config).context("writing nginx.conf")?;
        Ok(file.to_string_lossy().into_owned())
    }

    /// Returns when the new workers are there; the old ones may live on with their connections.
    fn reload(&mut self, shutdown: &str) -> Result<()> {
        self.write(&self.text(shutdown)?)?;
        let program = self.program.as_ref().context("nginx does not run")?;
        let old = children(program.id())?;
        program.signal(Signal::SIGHUP)?;
        promptly("nginx has new workers", RELOAD, || {
            let now = children(program.id()).ok()?;
            (now.iter().filter(|worker| !old.contains(worker)).count() >= processors()).then_some(())
        })
        .with_context(|| format!("{:.500}", program.log()))
    }
}

impl Candidate for Nginx {
    fn name(&self) -> &'static str {
        "nginx stream"
    }

    fn version(&self) -> String {
        version_of(&["nginx", "-v"])
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, services: &[Service]) -> Result<Load> {
        self.program = None;
        self.services = services.to_vec();
        self.zeroed.clear();
        let text = self.text("1h")?;
        let start = Instant::now();
        let file = self.write(&text)?;
        let words = ["nginx", "-c", &file, "-e", "stderr", "-p", "/usr/share/nginx"];
        let mut program = Program::start(None, Some(&self.host.namespace), &words)?;
        is_up(&self.host, services, &mut program)?;
        self.program = Some(program);
        Ok(Load::cold(start.elapsed()))
    }

    fn ways(&self) -> &'static [&'static str] {
        &["reload"]
    }

    fn zero(&mut self, node: usize, _way: &str) -> Result<()> {
        self.zeroed.push(node);
        self.reload("1h")
    }

    fn restore(&mut self) -> Result<()> {
        self.zeroed.clear();
        self.reload("1h")
    }

    fn drains_by(&self) -> Option<&'static str> {
        Some("reload with worker_shutdown_timeout 2s, which ends the kept connections of every node")
    }

    /// Workers keep to the limit that they have begun with.
    fn prepare_drain(&mut self) -> Result<()> {
        self.reload(SHUTDOWN)?;
        let program = self.program.as_ref().context("nginx does not run")?;
        promptly("nginx's old workers have ended", RELOAD, || {
            children(program.id()).is_ok_and(|workers| workers.len() <= processors()).then_some(())
        })
    }

    fn drain(&mut self, node: usize) -> Result<()> {
        self.zeroed.push(node);
        self.reload(SHUTDOWN)
    }

    fn memory(&mut self) -> Result<u64> {
        let program = self.program.as_ref().context("nginx does not run")?;
        memory_of_group(program.id())
    }
}

fn server(text: &mut String, service: &Service, zeroed: &[usize], shared: bool) -> fmt::Result {
    let number = service.number;
    writeln!(text, "upstream s{number} {{")?;
    if shared {
        writeln!(text, "zone s{number} 64k;")?;
    }
    if service.affinity {
        writeln!(text, "hash $remote_addr consistent;")?;
    }
    for (node, weight) in &service.weights {
        let down = if zeroed.contains(node) || *weight == 0 { " down" } else { "" };
        writeln!(text, "server {} weight={}{down};", service.backend(*node), (*weight).max(1))?;
    }
    let reuseport = if shared { " reuseport" } else { "" };
    writeln!(text, "}}\nserver {{ listen {}{reuseport} backlog=4096; proxy_pass s{number}; }}", service.frontend())
}
