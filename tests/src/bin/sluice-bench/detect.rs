//! How fast a backend that misbehaves is out, as its callers see it: a server that ends, a firewall that drops, a network
//! that is slow. Clients and backends are hosts of their own, joined by cables.

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    Agent, Cgroup, Client, Load, Namespace, Report as Attempts, Server,
    client::{Attempt, Options},
    interrupt, system,
};

use crate::{
    Scale,
    report::{Figure, Report, Samples, Target, Unit},
};

const GROUP: &str = "A backend misbehaves, one of three, under some hundred connections a second";
const FRONTEND: &str = "10.96.0.10:80";
const PORT: u16 = 8080;
const HOSTS: u8 = 3;
/// The host that misbehaves.
const BAD: u8 = 2;
/// Time of good traffic before anything happens.
const GOOD: Duration = Duration::from_secs(2);
/// Time that a backend may take to be out before the bench gives up.
const LIMIT: Duration = Duration::from_secs(60);
/// Length of a window of the rule for slow connects.
const WINDOW: Duration = Duration::from_secs(3);
/// What the slow network adds to every packet of the backend.
const DELAY: &str = "200ms";

/// One way after the other.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let rounds = scale.of(5);
    let (mut refused, mut callers) = (Samples::default(), Samples::default());
    let mut silent = Samples::default();
    for _ in 0..rounds {
        let (attempts, _) = Bed::new(json!({}))?.course(Bed::end_server)?;
        let failed = failures(&attempts);
        let third = failed.get(2).context("fewer than three connections were refused")?;
        refused.push(millis_between(third, failed.last().unwrap_or(third)));
        callers.push(failed.len() as f64);

        let (attempts, _) = Bed::new(json!({}))?.course(Bed::drop_packets)?;
        let failed = failures(&attempts);
        let first = failed.first().context("no connection went unanswered")?;
        silent.push(millis_between(first, failed.last().unwrap_or(first)));
    }
    let figure =
        Figure::median(GROUP, "refuses: third refused connect until the last one", &refused, Unit::Milliseconds);
    report.add(figure.target(Target::AtMost(1000.0)));
    report.add(Figure::median(GROUP, "refuses: connections refused in all", &callers, Unit::Count));
    let figure = Figure::median(
        GROUP,
        "firewall drops: first unanswered connect until the last one",
        &silent,
        Unit::Milliseconds,
    );
    report.add(figure.target(Target::AtMost(5000.0)));
    slow(rounds, report)
}

fn slow(rounds: u32, report: &mut Report) -> Result<()> {
    let rules = json!({"connectTimeFactor": 5, "interval": format!("{}s", WINDOW.as_secs()), "minimumVolume": 10, "minimumBackends": 3});
    let mut windows = Samples::default();
    for _ in 0..rounds {
        let bed = Bed::new(rules.clone())?;
        if let Err(error) = bed.delay() {
            println!("  not measured: a slow network ({error:#})");
            return Ok(());
        }
        bed.host(BAD)?.tc(&format!("qdisc del dev {} root", bed.device))?;
        let (_, took) = bed.course(|bed| bed.delay())?;
        windows.push(took.as_secs_f64() / WINDOW.as_secs_f64());
    }
    let name = format!("network adds {DELAY}: until it is out, in windows of {} s", WINDOW.as_secs());
    report.add(Figure::median(GROUP, name, &windows, Unit::Ratio).target(Target::AtMost(2.0)));
    Ok(())
}

struct Bed {
    /// Before what it steers, so that its programs go first.
    agent: Agent,
    servers: Vec<Server>,
    clients: Namespace,
    hosts: Vec<Namespace>,
    cgroup: Cgroup,
    /// What joins the bad host to the clients, there.
    device: String,
}

impl Bed {
    fn new(rules: Value) -> Result<Self> {
        interrupt::check()?;
        let (clients, cgroup) = (Namespace::new()?, Cgroup::new("detect")?);
        let (mut hosts, mut servers, mut device) = (Vec::new(), Vec::new(), String::new());
        for number in 1..=HOSTS {
            let host = Namespace::new()?;
            let end = |last| (IpAddr::from([10, 0, number, last]), 24);
            let link = clients.link(&host, end(1), end(2))?;
            if number == BAD {
                device = link.there;
            }
            servers.push(Server::tcp(&host, address(number), &format!("b{number}"))?);
            hosts.push(host);
        }
        let mut agent = Agent::new(cgroup.path())?.quiet().inside(&clients)?;
        agent.start()?;
        let backend =
            |number| json!({"name": format!("b{number}"), "address": address(number), "node": format!("n{number}")});
        let backends: Vec<_> = (1..=HOSTS).map(backend).collect();
        let document = json!({"apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "shop"},
            "spec": {"frontends": [FRONTEND], "backends": backends, "outlier": rules}});
        let answer = agent.put("/v1/services/shop", &document)?;
        ensure!(answer.status == 201, "{} {}", answer.status, answer.text());
        Ok(Self { agent, servers, clients, hosts, cgroup, device })
    }

    /// Good traffic, then trouble until the agent has the backend out. What the callers saw, and how long it took.
    fn course(mut self, trouble: impl FnOnce(&mut Self) -> Result<()>) -> Result<(Attempts, Duration)> {
        let client = Client::start(Some(&self.cgroup), Some(&self.clients))?;
        let options = Options::default().timeout_millis(10_000);
        // Many threads: those that wait for the silent backend must not leave the others without callers.
        let load = Load::connects(FRONTEND).options(options).threads(64).pause(Duration::from_millis(150));
        let load = client.begin(&load);
        thread::sleep(GOOD);
        let (start, begun) = (Instant::now(), system::now());
        trouble(&mut self)?;
        while self.state()? != "unhealthy" {
            interrupt::check()?;
            ensure!(start.elapsed() < LIMIT, "the backend is still in after {LIMIT:?}");
            thread::sleep(Duration::from_millis(5));
        }
        let took = start.elapsed();
        // Whoever still came to it would be among the attempts.
        thread::sleep(Duration::from_secs(1));
        Ok((load.stop().since(begun), took))
    }

    fn state(&self) -> Result<Value> {
        let service = self.agent.get("/v1/services/shop")?.json();
        Ok(service["status"]["backends"][usize::from(BAD - 1)]["state"].clone())
    }

    fn end_server(&mut self) -> Result<()> {
        self.servers.remove(usize::from(BAD - 1));
        Ok(())
    }

    fn drop_packets(&mut self) -> Result<()> {
        let rules = format!(
            "add table inet cut; add chain inet cut in {{ type filter hook input priority 0; }}; add rule inet cut in tcp dport {PORT} drop"
        );
        inside(self.host(BAD)?, Command::new("nft").arg(rules))
    }

    fn delay(&self) -> Result<()> {
        self.host(BAD)?.tc(&format!("qdisc add dev {} root netem delay {DELAY}", self.device))
    }

    fn host(&self, number: u8) -> Result<&Namespace> {
        self.hosts.get(usize::from(number - 1)).context("there is no such host")
    }
}

trait Shaped {
    fn tc(&self, words: &str) -> Result<()>;
}

impl Shaped for Namespace {
    fn tc(&self, words: &str) -> Result<()> {
        inside(self, Command::new("tc").args(words.split(' ')))
    }
}

fn inside(namespace: &Namespace, command: &mut Command) -> Result<()> {
    let output = namespace.run(|| command.output()).context("starting a program of the network")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, number, 2], PORT))
}

/// Attempts that no server answered, or only after the first SYN was lost, by their beginnings.
fn failures(attempts: &Attempts) -> Vec<&Attempt> {
    let mut failed: Vec<_> = attempts.attempts.iter().filter(|attempt| attempt.errno.is_some()).collect();
    failed.sort_by_key(|attempt| attempt.start_micros);
    failed
}

fn millis_between(first: &Attempt, last: &Attempt) -> f64 {
    (last.start_micros - first.start_micros) as f64 / 1e3
}
