//! The network: three nodes with backends and some client hosts, each in a namespace of its own, on one switch.

use anyhow::{Context, Result};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::de::DeserializeOwned;
use sluice_tests::{Cgroup, Namespace, Program, daemons::open_directory, system::unique};
use tempfile::TempDir;

use super::{
    load::{Ask, Open, Opened, Work},
    node::{self, Seen},
    process::Helper,
    setup::{NODES, STREAM, WEB, second},
};

const WEB_SERVER: &str = include_str!("peers/web.conf");

/// A bridge with everything that is plugged into it.
#[derive(Debug)]
pub struct Network {
    switch: Namespace,
    /// What backends live on.
    pub nodes: Vec<Node>,
}

/// A host with backends.
#[derive(Debug)]
pub struct Node {
    helper: Helper,
    _programs: Vec<Program>,
    _directory: TempDir,
    _namespace: Namespace,
}

/// A host with clients, and with what steers them.
#[derive(Debug)]
pub struct Host {
    /// Opens connections.
    pub load: Helper,
    /// Nothing but clients is in it.
    pub cgroup: Cgroup,
    /// Where the clients and their proxy are.
    pub namespace: Namespace,
}

impl Network {
    /// The switch and the nodes, with servers that listen.
    pub fn new(servers: bool) -> Result<Self> {
        // Children inherit it: proxies that listen on 10,000 addresses need more than a usual limit, as far as the system
        // allows.
        let files = files()?;
        setrlimit(Resource::RLIMIT_NOFILE, files, files).context("raising the limit of open files")?;
        let switch = Namespace::new()?;
        switch.ip("link add br0 type bridge")?;
        switch.ip("link set br0 up")?;
        let mut network = Self { switch, nodes: Vec::new() };
        for number in 0..NODES {
            let node = network.node(number, servers).with_context(|| format!("making node {number}"))?;
            network.nodes.push(node);
        }
        Ok(network)
    }

    fn node(&self, number: usize, servers: bool) -> Result<Node> {
        let namespace = Namespace::new()?;
        self.plug(&namespace, &format!("10.1.1.{}", number + 1))?;
        namespace.ip(&format!("route add local 10.{}.0.0/16 dev lo", second(number)))?;
        // For direct routing: packets come with the frontend's address. Nobody asks the switch for it.
        namespace.ip("route add local 10.96.0.0/16 dev lo")?;
        let directory = open_directory()?;
        let mut programs = Vec::new();
        if servers {
            let root = directory.path().to_string_lossy().into_owned();
            let config = directory.path().join("web.conf");
            let text = WEB_SERVER.replace("@ROOT@", &root).replace("@PORT@", &WEB.to_string());
            std::fs::write(&config, text.replace("@NAME@", &(number + 1).to_string())).context("writing web.conf")?;
            let config = config.to_string_lossy().into_owned();
            programs.push(Program::start(None, Some(&namespace), &["nginx", "-c", &config, "-e", "stderr"])?);
            let port = STREAM.to_string();
            programs.push(Program::start(None, Some(&namespace), &["iperf3", "--server", "--port", &port])?);
        }
        let mut helper = Helper::start(None, &namespace, &["node", &(number + 1).to_string()])?;
        let _: Seen = helper.ask(&node::Ask::Look)?;
        Ok(Node { helper, _programs: programs, _directory: directory, _namespace: namespace })
    }

    /// One more client host. A host whose frontends are `local` can listen on them; on another one nothing answers there
    /// but what steers.
    pub fn host(&self, number: usize, local: bool) -> Result<Host> {
        let cgroup = Cgroup::new("compare")?;
        let namespace = Namespace::new()?;
        let address = format!("10.1.0.{}", number + 1);
        self.plug(&namespace, &address)?;
        for node in 0..NODES {
            namespace.ip(&format!("route add 10.{}.0.0/16 via 10.1.1.{}", second(node), node + 1))?;
        }
        if local {
            namespace.ip(&format!("route add local 10.96.0.0/16 dev lo src {address}"))?;
        } else {
            // Nobody has this address: what is not steered gets no answer.
            namespace.ip("route add 10.96.0.0/16 via 10.1.255.254")?;
        }
        let load = Helper::start(Some(&cgroup), &namespace, &["load"])?;
        Ok(Host { load, cgroup, namespace })
    }

    fn plug(&self, namespace: &Namespace, address: &str) -> Result<()> {
        let port = unique("p");
        let port = format!("p{}", port.rsplit('-').next().unwrap_or_default());
        let switch = self.switch.path();
        namespace.ip(&format!("link add eth0 type veth peer name {port} netns {}", switch.display()))?;
        self.switch.ip(&format!("link set {port} master br0 up"))?;
        namespace.ip("link set eth0 up")?;
        namespace.ip(&format!("address add {address}/16 dev eth0"))?;
        // A bench makes more connections than there are ports; those that have ended must not hold on to theirs.
        namespace.sysctl("ipv4/tcp_max_tw_buckets", "1")?;
        namespace.sysctl("ipv4/ip_local_port_range", "10000 65000")
    }
}

/// How many files a process may open at most.
pub fn files() -> Result<u64> {
    Ok(getrlimit(Resource::RLIMIT_NOFILE).context("asking for the limit of open files")?.1)
}

impl Node {
    /// What has come to it on [`super::setup::PLAIN`].
    pub fn seen(&mut self) -> Result<Seen> {
        self.helper.ask(&node::Ask::Look)
    }
}

impl Host {
    /// Opens connections.
    pub fn open(&mut self, open: Open) -> Result<Opened> {
        self.load.ask(&Ask::Do(Work::Open(open)))
    }

    /// Begins to open connections or to send requests.
    pub fn begin(&mut self, work: Work) -> Result<()> {
        let _: serde_json::Value = self.load.ask(&Ask::Begin(work))?;
        Ok(())
    }

    /// Ends that, and says what became of it.
    pub fn end<A: DeserializeOwned>(&mut self) -> Result<A> {
        self.load.ask(&Ask::End)
    }
}
