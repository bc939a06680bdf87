//! The families that the agent writes, as `telemetry/names.rs` lists them with their labels.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use sluice_tests::Service;

use super::promql::Uses;
use crate::stage::{FRONTEND, Stage, assert_all_answered};

const SOURCE: &str = include_str!("../../../../../agent/src/telemetry/names.rs");

/// Labels that every sample gets when it is scraped.
const TARGET: [&str; 2] = ["job", "instance"];

/// A family's type in the text format, and its labels.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    kind: String,
    labels: BTreeSet<String>,
}

/// What expressions may name.
pub struct Families {
    families: BTreeMap<String, Family>,
    /// The results of recording rules, with the labels of what they are made of.
    recorded: BTreeMap<String, BTreeSet<String>>,
}

impl Families {
    /// Those of the agent.
    pub fn of_the_agent() -> Result<Self> {
        let families: BTreeMap<_, _> = read(SOURCE).context("reading names.rs")?;
        assert!(families.len() > 20, "names.rs is not understood any more: {families:?}");
        Ok(Self { families, recorded: BTreeMap::new() })
    }

    /// Takes the result of a recording rule in.
    pub fn record(&mut self, name: &str, uses: &Uses) {
        self.recorded.insert(name.to_owned(), self.labels(uses));
    }

    /// What is wrong with an expression: metrics that nobody writes, labels that nothing has.
    pub fn faults(&self, uses: &Uses) -> Vec<String> {
        let mut faults = Vec::new();
        for (metric, selected) in &uses.metrics {
            match self.labels_of(metric) {
                None => faults.push(format!("there is no metric {metric}")),
                Some(labels) => {
                    let unknown = selected.iter().filter(|label| !labels.contains(*label));
                    faults.extend(unknown.map(|label| format!("{metric} has no label {label}")));
                }
            }
        }
        let labels = self.labels(uses);
        let unknown = uses.labels.iter().filter(|label| !labels.contains(*label));
        faults.extend(unknown.map(|label| format!("nothing in it has a label {label}")));
        faults
    }

    /// All labels of the metrics that an expression names.
    fn labels(&self, uses: &Uses) -> BTreeSet<String> {
        uses.metrics.iter().filter_map(|(metric, _)| self.labels_of(metric)).flatten().collect()
    }

    fn labels_of(&self, metric: &str) -> Option<BTreeSet<String>> {
        let labels: &[&str] = match metric {
            // Prometheus writes these itself.
            "up" => &[],
            "ALERTS" => &["alertname", "alertstate", "severity"],
            _ => {
                return self.recorded.get(metric).cloned().or_else(|| self.written(metric));
            }
        };
        Some(labels.iter().chain(&TARGET).map(|label| (*label).to_owned()).collect())
    }

    /// The labels of a series that an agent writes.
    fn written(&self, series: &str) -> Option<BTreeSet<String>> {
        let (family, suffix) = self.family_of(series)?;
        let bound = (suffix == "_bucket").then_some("le");
        let target = TARGET.iter().copied().chain(bound).map(str::to_owned);
        Some(family.labels.iter().cloned().chain(target).collect())
    }

    fn family_of<'a>(&self, series: &'a str) -> Option<(&Family, &'a str)> {
        ["", "_bucket", "_sum", "_count"].into_iter().find_map(|suffix| {
            let family = self.families.get(series.strip_suffix(suffix)?)?;
            let written = match family.kind.as_str() {
                "histogram" => !suffix.is_empty(),
                "summary" => matches!(suffix, "_sum" | "_count"),
                _ => suffix.is_empty(),
            };
            written.then_some((family, &series[series.len() - suffix.len()..]))
        })
    }
}

/// Reads each family with the comment above it.
fn read(source: &str) -> Result<BTreeMap<String, Family>> {
    let mut families = BTreeMap::new();
    let mut comment = String::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("//") {
            comment = format!("{comment} {}", text.trim());
        } else if line.starts_with("pub const ") && line.contains(": MetricFamily") {
            let mut item = line.to_owned();
            while !item.ends_with(';') {
                item += lines.next().context("a family without an end")?;
            }
            let name = item.split('"').nth(1).with_context(|| format!("no name in {item}"))?;
            let kind = item.split("Kind::").nth(1).and_then(|rest| rest.split(',').next()).context("no kind")?;
            let family = Family { kind: kind.to_ascii_lowercase(), labels: labels(&comment) };
            families.insert(name.to_owned(), family);
            comment.clear();
        } else {
            comment.clear();
        }
    }
    Ok(families)
}

/// "Labels: service, state (connecting, active); more." has two.
fn labels(comment: &str) -> BTreeSet<String> {
    let Some((_, list)) = comment.split_once("Labels:") else { return BTreeSet::new() };
    let mut depth = 0;
    let outside: String = list
        .chars()
        .take_while(|c| !matches!(c, ';' | '.'))
        .filter(|c| {
            depth += i32::from(*c == '(');
            let kept = depth == 0;
            depth -= i32::from(*c == ')');
            kept
        })
        .collect();
    outside.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()).collect()
}

#[test]
fn a_live_agent_writes_what_is_listed() -> Result<()> {
    let Families { families, recorded } = Families::of_the_agent()?;
    let stage = Stage::weights("names", &[3, 1])?;
    stage.put(&Service::new("closed", "10.96.0.11:80").backend("b3", "10.0.0.3:8080", 0))?;
    assert_all_answered(&stage.client()?.spread(FRONTEND, 20));
    let page = stage.agent.get("/metrics")?.expect_status(200).text();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let live: BTreeMap<&str, &str> = types.filter_map(|line| line.split_once(' ')).collect();
    for (name, kind) in &live {
        let family = families.get(*name).with_context(|| format!("{name} is not in names.rs"))?;
        assert_eq!(family.kind, *kind, "{name}");
    }
    // A family with labels may have nothing to say yet, and then not even its name.
    let silent = families.iter().filter(|(name, family)| family.labels.is_empty() && !live.contains_key(name.as_str()));
    assert_eq!(silent.map(|(name, _)| name).collect::<Vec<_>>(), Vec::<&String>::new(), "never written");
    let families = Families { families, recorded };
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let series = line.rsplit_once(' ').context("a sample without a value")?.0;
        let found = super::promql::uses(series);
        assert_eq!(families.faults(&found), Vec::<String>::new(), "{line}");
    }
    Ok(())
}

#[test]
fn faults_in_expressions_are_found() -> Result<()> {
    let families = Families::of_the_agent()?;
    let faults = |expression: &str| families.faults(&super::promql::uses(expression)).len();
    assert_eq!(faults(r#"sum by (service) (rate(sluice_connections_total{backend="b"}[5m]))"#), 0);
    assert_eq!(faults("histogram_quantile(0.9, sum by (le) (rate(sluice_zero_duration_seconds_bucket[5m])))"), 0);
    assert_eq!(faults("sluice_connections_count"), 1);
    assert_eq!(faults("sluice_zero_duration_seconds"), 1);
    assert_eq!(faults("sluice_no_such_thing"), 1);
    assert_eq!(faults(r#"sluice_map_entries{service="shop"}"#), 1);
    assert_eq!(faults("sum by (le) (sluice_map_entries)"), 1);
    Ok(())
}
