//! A real Prometheus that scrapes a real agent, with the rules as they are.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sluice_tests::{
    Load, Namespace, Program,
    agent::free_port,
    daemons::is_up,
    http::{Endpoint, Request},
    system::eventually,
};
use tempfile::TempDir;

use crate::stage::{FRONTEND, LIMIT, Stage, path};

/// The rules, also where a machine does not see the repository.
const RULES: [(&str, &str); 2] = [
    ("recording.yml", include_str!("../../../../../agent/deploy/prometheus/recording.yml")),
    ("alerts.yml", include_str!("../../../../../agent/deploy/prometheus/alerts.yml")),
];

/// Rates need a few scrapes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Dropping it ends the server and removes what it has stored.
struct Prometheus {
    address: SocketAddr,
    _program: Program,
    _directory: TempDir,
}

impl Prometheus {
    /// Scrapes this address, and evaluates the rules, every second.
    fn watching(agent: &str) -> Result<Self> {
        let host = Namespace::host()?;
        let address = SocketAddr::from(([127, 0, 0, 1], free_port(&host)?));
        let directory = tempfile::tempdir()?;
        for (name, rules) in RULES {
            fs::write(directory.path().join(name), rules)?;
        }
        let file = directory.path().join("prometheus.yml");
        let config = json!({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": RULES.map(|(name, _)| name),
            "scrape_configs": [{"job_name": "sluice", "static_configs": [{"targets": [agent]}]}],
        });
        // JSON is YAML.
        fs::write(&file, config.to_string())?;
        let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let words = [
            "prometheus".to_owned(),
            option("config.file", &file),
            option("storage.tsdb.path", &directory.path().join("data")),
            format!("--web.listen-address={address}"),
        ];
        let mut program = Program::start(None, None, &words)?;
        is_up(&host, address, &mut program)?;
        Ok(Self { address, _program: program, _directory: directory })
    }

    /// The value of the first series that an expression finds.
    fn value(&self, expression: &str) -> Result<Option<f64>> {
        let answer = self.get(&format!("query?query={}", encoded(expression)))?;
        let value = answer["data"]["result"][0]["value"][1].as_str();
        Ok(value.and_then(|value| value.parse().ok()))
    }

    /// Waits for a value that is as it should be.
    fn reaches(&self, expression: &str, good: impl Fn(f64) -> bool) -> Result<f64> {
        let mut last = None;
        let reached = eventually(expression, PATIENCE, || {
            last = self.value(expression).ok()?;
            last.filter(|value| good(*value))
        });
        reached.with_context(|| format!("{expression} is {last:?}"))
    }

    /// All rules with their state.
    fn rules(&self) -> Result<Vec<Value>> {
        let answer = self.get("rules")?;
        let groups = answer["data"]["groups"].as_array().context("no groups")?;
        Ok(groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
    }

    fn get(&self, what: &str) -> Result<Value> {
        let answer = Endpoint::Tcp(self.address).request("GET", &format!("/api/v1/{what}"), &Request::new())?;
        Ok(serde_json::from_slice(&answer.body)?)
    }
}

#[test]
fn host_prometheus_watches_a_live_agent() -> Result<()> {
    let address = format!("127.0.0.1:{}", free_port(&Namespace::host()?)?);
    let mut stage = Stage::with("prometheus", |agent| agent.listen(&address))?;
    let service = stage.service(&[3, 1])?;
    stage.put(&service)?;
    let prometheus = Prometheus::watching(&address)?;
    let (client, user) = (stage.client()?, stage.client()?);
    let load = client.begin(&Load::connects(FRONTEND).pause(Duration::from_millis(5)));
    load.reached(100, LIMIT)?;

    // Recording rules have values, and the right ones.
    prometheus.reaches(r#"service:sluice_connections:rate5m{service="shop",job="sluice"}"#, |rate| rate > 1.0)?;
    let share =
        |backend| format!(r#"service_backend:sluice_connections:share5m{{service="shop",backend="{backend}"}}"#);
    prometheus.reaches(&share("b1"), |share| (share - 0.75).abs() < 0.05)?;
    prometheus.reaches(&share("b2"), |share| (share - 0.25).abs() < 0.05)?;
    prometheus.reaches("service:sluice_connect_duration_seconds:p99", |seconds| seconds > 0.0 && seconds < 10.0)?;
    prometheus.reaches("service:sluice_backends:count", |count| count == 2.0)?;
    prometheus.reaches("service:sluice_traffic_share:deviation_max", |deviation| deviation < 0.05)?;
    prometheus.reaches("job:sluice_up:ratio", |ratio| ratio == 1.0)?;
    prometheus.reaches(r#"instance_map:sluice_map_entries:ratio{map="backends"}"#, |ratio| ratio > 0.0)?;
    // Nothing is wrong yet.
    assert_eq!(prometheus.value(r#"count(ALERTS{alertstate="firing"})"#)?, None);

    // A connection in use is cut at the deadline of a drain.
    let kept = loop {
        let connection = user.connect(FRONTEND)?;
        if connection.line()? == "b1" {
            break connection;
        }
    };
    kept.send("half of ")?;
    let terms = json!({"deadline": "500ms", "idleClose": null, "onDeadline": "close"});
    stage.agent.post(&path("node/n1", "drain"), &terms)?.expect_status(202);
    prometheus
        .reaches(r#"ALERTS{alertname="SluiceDrainsCutConnections",alertstate="firing"}"#, |value| value == 1.0)?;
    drop(kept);

    // Then nobody is left to serve.
    stage.agent.post(&path("node/n2", "zero"), &json!({"force": true}))?.expect_status(200);
    prometheus.reaches(r#"ALERTS{alertname="SluiceNoBackend",service="shop"}"#, |value| value == 1.0)?;
    drop(load.stop());

    // With real series every rule can be evaluated, whatever it finds.
    let rules = prometheus.rules()?;
    assert!(rules.len() > 60, "{} rules", rules.len());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    Ok(())
}

/// For the query of a URL.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}
