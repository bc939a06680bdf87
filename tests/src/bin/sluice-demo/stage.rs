//! Where the demo plays: namespaces that stand for hosts, joined by cables, and one cgroup for the steered clients. All of
//! it goes away with this value.
//!
//!     clients (cgroup, namespace) ---- node-1: web-1
//!                                 ---- node-2: web-2
//!                                 ---- node-3: web-3

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{Agent, Cgroup, Namespace, Server, http::Response};

use crate::load::Load;

/// The address that the clients know. No route leads there: without steering no connection can be made.
pub const FRONTEND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 80);
/// The service's name.
pub const SERVICE: &str = "shop";
/// How many servers there are.
pub const SERVERS: usize = 3;

/// Everything that runs.
#[derive(Debug)]
pub struct Stage {
    /// None once the clients have stopped.
    pub load: Option<Load>,
    /// Steers the clients.
    pub agent: Agent,
    /// One on each node.
    pub servers: Vec<Server>,
    /// The clients' host.
    pub clients: Namespace,
    nodes: Vec<Namespace>,
    /// The clients' cgroup.
    pub cgroup: Cgroup,
}

/// Weights of the groups, and the group of each backend.
pub type Groups<'a> = (&'a [(&'a str, u32)], [&'a str; SERVERS]);

impl Stage {
    /// Sets everything up; the clients do not ask yet.
    pub fn new() -> Result<Self> {
        let (clients, cgroup) = (Namespace::new()?, Cgroup::new("demo")?);
        let (mut nodes, mut servers) = (Vec::new(), Vec::new());
        for number in 1..=SERVERS {
            let node = Namespace::new()?;
            let net = u8::try_from(number).context("numbering a network")?;
            let end = |host| (IpAddr::from([10, 0, net, host]), 24);
            clients.link(&node, end(1), end(2))?;
            servers.push(Server::http(&node, backend(number)?, &name(number))?);
            nodes.push(node);
        }
        // The agent tries backends from where their callers are.
        let mut agent = Agent::new(cgroup.path())?.quiet().inside(&clients)?;
        agent.start()?;
        Ok(Self { load: None, agent, servers, clients, nodes, cgroup })
    }

    /// Puts the service's document.
    pub fn put(&self, groups: Groups) -> Result<Value> {
        self.put_with(groups, SERVERS, json!({}))
    }

    /// Puts the document with the first `servers` of the backends, and with these fields besides.
    pub fn put_with(&self, groups: Groups, servers: usize, fields: Value) -> Result<Value> {
        let (weights, member) = groups;
        let groups: Vec<Value> = weights.iter().map(|(name, weight)| json!({"name": name, "weight": weight})).collect();
        let mut backends = Vec::new();
        for (number, group) in (1..).zip(member).take(servers) {
            let mut backend =
                json!({"name": name(number), "address": backend(number)?.to_string(), "node": node(number)});
            if !groups.is_empty() {
                backend["group"] = json!(group);
            }
            backends.push(backend);
        }
        let mut document = json!({
            "apiVersion": "sluice.dev/v1",
            "kind": "SteeredService",
            "metadata": {"name": SERVICE},
            "spec": {"frontends": [FRONTEND.to_string()], "groups": groups, "backends": backends},
        });
        if let (Value::Object(spec), Value::Object(fields)) = (&mut document["spec"], fields) {
            spec.extend(fields);
        }
        good(&self.agent.put(&format!("/v1/services/{SERVICE}"), &document)?)
    }

    /// Ends a server: its node refuses connections.
    pub fn stop(&mut self, number: usize) {
        self.servers.retain(|server| server.name() != name(number));
    }

    /// Starts a server again.
    pub fn start(&mut self, number: usize) -> Result<()> {
        let node = self.nodes.get(number - 1).context("there is no such node")?;
        self.servers.push(Server::http(node, backend(number)?, &name(number))?);
        Ok(())
    }

    /// Pulls the cable of a node, or puts it back: what is sent there is not answered any more.
    pub fn cut(&self, number: usize, cut: bool) -> Result<()> {
        let node = self.nodes.get(number - 1).context("there is no such node")?;
        let route = format!("route {} blackhole 10.0.{number}.1/32", if cut { "add" } else { "del" });
        node.ip(&route)
    }

    /// The status of one backend.
    pub fn backend(&self, number: usize) -> Result<Value> {
        let service = self.service()?;
        let backends = service["status"]["backends"].as_array().cloned().unwrap_or_default();
        backends.into_iter().find(|held| held["name"] == name(number).as_str()).context("no such backend")
    }

    /// The service with its status.
    pub fn service(&self) -> Result<Value> {
        good(&self.agent.get(&format!("/v1/services/{SERVICE}"))?)
    }

    /// How far an operation has come.
    pub fn operation(&self, id: &str) -> Result<Value> {
        good(&self.agent.get(&format!("/v1/operations/{id}"))?)
    }

    /// `zero`, `drain` or `restore` of a node.
    pub fn act(&self, node: &str, verb: &str, body: &Value) -> Result<Value> {
        good(&self.agent.post(&format!("/v1/nodes/{node}/{verb}"), body)?)
    }

    /// A node with its status.
    pub fn node(&self, node: &str) -> Result<Value> {
        good(&self.agent.get(&format!("/v1/nodes/{node}"))?)
    }
}

/// "web-1" is a backend, and the server there.
pub fn name(number: usize) -> String {
    format!("web-{number}")
}

/// The node of that backend.
pub fn node(number: usize) -> String {
    format!("node-{number}")
}

fn backend(number: usize) -> Result<SocketAddr> {
    let net = u8::try_from(number).context("numbering a network")?;
    Ok(SocketAddr::from(([10, 0, net, 2], 8080)))
}

fn good(answer: &Response) -> Result<Value> {
    ensure!(matches!(answer.status, 200..=202), "the agent answers {}: {}", answer.status, answer.text());
    serde_json::from_slice(&answer.body).with_context(|| format!("reading the agent's answer {}", answer.text()))
}
