//! The rules for Prometheus and the dashboard under `agent/deploy`: that they are valid, that they name what the agent
//! writes, and that each alert fires when it should. Most of it needs promtool and the files, which are on the host only.

mod dashboard;
mod families;
mod live;
mod promql;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, de::DeserializeOwned};
use sluice_tests::program;

use families::Families;

const SEVERITIES: [&str; 3] = ["critical", "warning", "info"];

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    record: Option<String>,
    alert: Option<String>,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct UnitTests {
    tests: Vec<UnitTest>,
}

#[derive(Deserialize)]
struct UnitTest {
    alert_rule_test: Vec<AlertTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<serde_json::Value>,
}

#[test]
fn host_promtool_finds_the_rules_valid() -> Result<()> {
    let files = rule_files().map(|file| file.to_string_lossy().into_owned());
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", &files[0], &files[1]])?;
    Ok(())
}

#[test]
fn host_alerts_fire_when_they_should_and_rest_when_not() -> Result<()> {
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    let mut words = vec!["test".to_owned(), "rules".to_owned()];
    for file in unit_tests()? {
        let UnitTests { tests } = read(&file)?;
        for AlertTest { alertname, exp_alerts } in tests.into_iter().flat_map(|test| test.alert_rule_test) {
            if exp_alerts.is_empty() { &mut rests } else { &mut fires }.insert(alertname);
        }
        words.push(file.to_string_lossy().into_owned());
    }
    promtool(&words.iter().map(String::as_str).collect::<Vec<_>>())?;
    let alerts: BTreeSet<String> = rules()?.into_iter().filter_map(|rule| rule.alert).collect();
    assert_eq!((&fires, &rests), (&alerts, &alerts), "alerts with a case of each kind, and alerts");
    Ok(())
}

#[test]
fn host_alerts_say_how_urgent_they_are_and_what_to_do() -> Result<()> {
    let alerts = rules()?.into_iter().filter_map(|rule| Some((rule.alert.clone()?, rule)));
    for (name, rule) in alerts {
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(severity.is_some_and(|severity| SEVERITIES.contains(&severity)), "{name}: {severity:?}");
        for annotation in ["summary", "description"] {
            assert!(rule.annotations.get(annotation).is_some_and(|text| text.len() > 20), "{name} has no {annotation}");
        }
    }
    Ok(())
}

#[test]
fn host_rules_name_what_the_agent_writes() -> Result<()> {
    let mut families = Families::of_the_agent()?;
    let mut faults = Vec::new();
    for Rule { record, alert, expr, annotations, .. } in rules()? {
        let uses = promql::uses(&expr);
        let name = record.as_ref().or(alert.as_ref()).context("a rule without a name")?;
        faults.extend(families.faults(&uses).into_iter().map(|fault| format!("{name}: {fault}")));
        if let Some(record) = &record {
            families.record(record, &uses);
        }
        // What an annotation shows is a label of what it is about.
        let shown = annotations.values().flat_map(|text| text.split("$labels.").skip(1));
        let shown = shown.filter_map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next());
        let about = promql::Uses { metrics: uses.metrics, labels: shown.map(str::to_owned).collect() };
        faults.extend(families.faults(&about).into_iter().map(|fault| format!("{name}, annotations: {fault}")));
    }
    faults.dedup();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Recording rules first: alerts use them.
fn rules() -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for file in rule_files() {
        let RuleFile { groups } = read(&file)?;
        rules.extend(groups.into_iter().flat_map(|group| group.rules));
    }
    Ok(rules)
}

fn rule_files() -> [PathBuf; 2] {
    ["prometheus/recording.yml", "prometheus/alerts.yml"].map(deployed)
}

fn unit_tests() -> Result<Vec<PathBuf>> {
    let directory = deployed("prometheus/tests");
    let files = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    let mut files: Vec<PathBuf> = files.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    assert!(!files.is_empty());
    Ok(files)
}

fn deployed(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../agent/deploy").join(file)
}

/// YAML, of which JSON is a part.
fn read<T: DeserializeOwned>(file: &Path) -> Result<T> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_saphyr::from_str(&text).with_context(|| format!("understanding {}", file.display()))
}

fn promtool(words: &[&str]) -> Result<String> {
    program::output(None, None, &[&["promtool"], words].concat())
}
