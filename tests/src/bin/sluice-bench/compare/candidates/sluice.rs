//! Sluice: an agent that steers the clients' cgroup.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sluice_tests::{Agent, http};

use super::{Candidate, Load, version_of};
use crate::{
    bpf::memory_of_maps,
    compare::{
        machine::memory_of,
        process::promptly,
        setup::Service,
        topology::{Host, Network},
    },
};

/// Entries of the tables, beyond the agent's own default: 10,000 services of three backends must fit.
const MAX_BACKENDS: &str = "131072";
/// How long an agent may take to start.
const READY: Duration = Duration::from_secs(60);
/// Of the command line.
const BY_COMMAND: &str = "sluice zero";

/// The agent; None for a moment between two. Before the host: its programs go before the cgroup.
pub struct Sluice {
    agent: Option<Agent>,
    host: Host,
}

impl Sluice {
    /// An agent without documents.
    pub fn new(network: &Network, number: usize) -> Result<Self> {
        let mut sluice = Self { agent: None, host: network.host(number, false)? };
        sluice.begin()?;
        Ok(sluice)
    }

    /// Replaces the agent by one that knows nothing; returns how long the new one took to be ready.
    fn begin(&mut self) -> Result<Duration> {
        self.agent = None;
        let agent = Agent::new(self.host.cgroup.path())?.quiet().inside(&self.host.namespace)?;
        let mut agent = agent.environment("SLUICE_MAX_BACKENDS", MAX_BACKENDS);
        let start = Instant::now();
        agent.spawn()?;
        let probe = || agent.get("/readyz").is_ok_and(|answer| answer.status == 200).then_some(());
        promptly("the agent is ready", READY, probe).with_context(|| format!("{:.500}", agent.log()))?;
        let took = start.elapsed();
        self.agent = Some(agent);
        Ok(took)
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    fn post(&self, path: &str, body: &serde_json::Value) -> Result<()> {
        let answer = self.agent()?.post(path, body)?;
        ensure!(matches!(answer.status, 200 | 202), "{path}: {}: {:.300}", answer.status, answer.text());
        Ok(())
    }
}

impl Candidate for Sluice {
    fn name(&self) -> &'static str {
        "Sluice"
    }

    fn version(&self) -> String {
        sluice_tests::agent::program()
            .map_or_else(|_| "unknown".to_owned(), |program| version_of(&[&program.to_string_lossy(), "version"]))
    }

    fn host(&mut self) -> &mut Host {
        &mut self.host
    }

    fn load(&mut self, services: &[Service]) -> Result<Load> {
        let mut text = String::new();
        services.iter().try_for_each(|service| document(&mut text, service)).context("writing documents")?;
        let request = http::Request::new().body("application/yaml", text);
        let start_of_agent = self.begin()?;
        let start = Instant::now();
        let answer = self.agent()?.request("POST", "/v1/apply", &request)?;
        ensure!(answer.status == 200, "applying documents: {}: {:.300}", answer.status, answer.text());
        let running = start.elapsed();
        Ok(Load { cold: start_of_agent + running, running: Some(running) })
    }

    fn ways(&self) -> &'static [&'static str] {
        &["HTTP", BY_COMMAND]
    }

    fn zero(&mut self, node: usize, way: &str) -> Result<()> {
        if way == BY_COMMAND {
            let output = self.agent()?.cli(&["zero", &format!("node/node-{}", node + 1), "--force"])?;
            ensure!(output.status.success(), "sluice zero: {}", String::from_utf8_lossy(&output.stderr));
            return Ok(());
        }
        self.post(&format!("/v1/nodes/node-{}/zero", node + 1), &json!({"reason": "bench", "force": true}))
    }

    fn restore(&mut self) -> Result<()> {
        let nodes = self.agent()?.get("/v1/nodes")?.json();
        let names = nodes["items"].as_array().into_iter().flatten();
        for name in names.filter_map(|node| node["metadata"]["name"].as_str()) {
            self.post(&format!("/v1/nodes/{name}/restore"), &json!({}))?;
        }
        Ok(())
    }

    fn drains_by(&self) -> Option<&'static str> {
        Some("drain: closes connections that have been idle for 0.1 s")
    }

    fn drain(&mut self, node: usize) -> Result<()> {
        // iperf3's service has no other backend: that is known.
        let body = json!({"deadline": "30s", "idleClose": "100ms", "force": true});
        self.post(&format!("/v1/nodes/node-{}/drain", node + 1), &body)
    }

    fn memory(&mut self) -> Result<u64> {
        let agent = self.agent()?;
        Ok(memory_of(agent.id().context("no agent runs")?)? + memory_of_maps(agent.bpffs())?)
    }
}

fn document(text: &mut String, service: &Service) -> std::fmt::Result {
    let (number, at) = (service.number, service.frontend());
    let balance = if service.affinity { "hash" } else { "spread" };
    writeln!(text, "---\napiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {{name: s{number}}}")?;
    writeln!(text, "spec:\n  frontends: [\"{at}\"]\n  balance: {balance}\n  backends:")?;
    for (node, weight) in &service.weights {
        let (number, address) = (node + 1, service.backend(*node));
        writeln!(text, "  - {{name: n{number}, address: \"{address}\", node: node-{number}, weight: {weight}}}")?;
    }
    Ok(())
}
