//! The dashboard for Grafana.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Families, deployed, promql, promtool};

/// What Grafana puts into expressions by itself.
const BUILT_IN: &str = "__rate_interval";

#[test]
fn host_the_dashboard_asks_for_what_the_agent_writes() -> Result<()> {
    let dashboard = dashboard()?;
    let families = Families::of_the_agent()?;
    let mut faults = Vec::new();
    for (title, expression) in expressions(&dashboard) {
        let found = families.faults(&promql::uses(&filled(&expression)));
        faults.extend(found.into_iter().map(|fault| format!("{title}: {fault}")));
    }
    for query in queries(&dashboard) {
        let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (series, label) = inside.and_then(|inside| inside.rsplit_once(',')).context("not label_values")?;
        let mut uses = promql::uses(&filled(series));
        uses.labels.push(label.trim().to_owned());
        faults.extend(families.faults(&uses).into_iter().map(|fault| format!("{query}: {fault}")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[test]
fn host_expressions_of_the_dashboard_are_valid() -> Result<()> {
    let rules: Vec<Value> = expressions(&dashboard()?)
        .iter()
        .enumerate()
        .map(|(number, (_, expression))| json!({"record": format!("dashboard:{number}"), "expr": filled(expression)}))
        .collect();
    assert!(rules.len() > 30, "{} expressions", rules.len());
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("dashboard.yml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string())?;
    promtool(&["check", "rules", &file.to_string_lossy()])?;
    Ok(())
}

#[test]
fn host_panels_have_units_and_take_the_chosen_data_source() -> Result<()> {
    let dashboard = dashboard()?;
    let declared: BTreeSet<&str> = variables(&dashboard).filter_map(|variable| variable["name"].as_str()).collect();
    assert!(declared.is_superset(&["datasource", "service", "backend"].into()), "{declared:?}");
    let mut ids = BTreeSet::new();
    let mut rows = 0;
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().context("a panel without a title")?;
        assert!(ids.insert(panel["id"].as_u64().context("a panel without an id")?), "{title}: its id is taken");
        if panel["type"] == "row" {
            rows += 1;
            continue;
        }
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        for target in panel["targets"].as_array().context("a panel without targets")? {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
    }
    assert!(rows >= 5, "{rows} rows");
    // One that is fixed would take the place of somebody else's dashboard.
    assert!(dashboard["uid"].is_null() && dashboard["id"].is_null());
    for (title, expression) in expressions(&dashboard) {
        for variable in expression.split('$').skip(1) {
            let name = variable.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
            assert!(name == BUILT_IN || declared.contains(name), "{title}: ${name}");
        }
    }
    Ok(())
}

fn dashboard() -> Result<Value> {
    let file = deployed("grafana/sluice.json");
    serde_json::from_str(&fs::read_to_string(&file)?).with_context(|| format!("understanding {}", file.display()))
}

fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["panels"].as_array().into_iter().flatten()
}

fn variables(dashboard: &Value) -> impl Iterator<Item = &Value> {
    dashboard["templating"]["list"].as_array().into_iter().flatten()
}

/// What the variables are filled from.
fn queries(dashboard: &Value) -> impl Iterator<Item = &str> {
    variables(dashboard).filter(|variable| variable["type"] == "query").filter_map(|it| it["query"]["query"].as_str())
}

/// Every expression, with the title of what shows it.
fn expressions(dashboard: &Value) -> Vec<(String, String)> {
    let annotations = dashboard["annotations"]["list"].as_array().into_iter().flatten();
    let annotations = annotations.map(|held| (held["name"].clone(), held["expr"].clone()));
    let targets = panels(dashboard).flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| (panel["title"].clone(), target["expr"].clone()))
    });
    let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
    annotations.chain(targets).map(|(title, expression)| (text(title), text(expression))).collect()
}

/// With the variables as Grafana would fill them.
fn filled(expression: &str) -> String {
    let mut filled = expression.replace("$__rate_interval", "1m");
    for variable in ["job", "instance", "service", "backend"] {
        filled = filled.replace(&format!("${variable}"), ".*");
    }
    filled
}
