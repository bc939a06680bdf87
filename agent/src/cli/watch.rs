//! `sluice get --watch`: what is there, and then what changes.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{
    client::Client,
    failure::Failure,
    follow::is_away,
    output::{self, Output, OutputFormat, TextTable},
};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints what is at `path`, and again what of it has changed, until somebody interrupts. An agent that stops is waited
/// for.
///
/// # Errors
/// When nobody answers at first, or the agent refuses.
pub async fn watch(
    client: &Client,
    path: &str,
    output: Output,
    table: impl Fn(Value) -> Result<TextTable, Failure>,
) -> Result<(), Failure> {
    let mut seen = ShownItems::default();
    let mut away = false;
    loop {
        match client.get::<Value>(path).await {
            Ok(value) => {
                if std::mem::take(&mut away) {
                    output::note("an agent answers again");
                }
                let items = match value {
                    Value::Object(mut fields) => match fields.remove("items") {
                        Some(Value::Array(items)) => items,
                        Some(_) | None => vec![Value::Object(fields)],
                    },
                    _ => Vec::new(),
                };
                let changes = seen.take_in(&items);
                show(&items, &changes, output, &mut seen.header, &table)?;
                changes.gone.iter().for_each(|name| output::note(format!("{name} is gone")));
            }
            Err(failure) if seen.looked && (is_away(&failure) || matches!(failure, Failure::TimedOut(_))) => {
                if !std::mem::replace(&mut away, true) {
                    output::note(format!("{failure}; waiting for it"));
                }
            }
            Err(failure) => return Err(failure),
        }
        seen.looked = true;
        sleep(PAUSE).await;
    }
}

/// What was shown.
#[derive(Default)]
struct ShownItems {
    looked: bool,
    items: BTreeMap<String, Value>,
    header: String,
}

/// What differs from what was shown.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// Places of those that are new or different.
    places: Vec<usize>,
    gone: Vec<String>,
}

impl ShownItems {
    fn take_in(&mut self, items: &[Value]) -> Changes {
        let now: BTreeMap<_, _> = items.iter().map(|item| (name(item), item.clone())).collect();
        let gone = self.items.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        let differs = |item: &Value| self.items.get(&name(item)) != Some(item);
        let places = items.iter().enumerate().filter(|(_, item)| differs(item)).map(|(place, _)| place).collect();
        self.items = now;
        Changes { places, gone }
    }
}

fn name(item: &Value) -> String {
    let name = item["metadata"]["name"].as_str().or_else(|| item["id"].as_str());
    name.unwrap_or_default().to_owned()
}

/// Prints the items at these places. `header`: the one that was printed last.
fn show(
    items: &[Value],
    changes: &Changes,
    output: Output,
    header: &mut String,
    table: impl Fn(Value) -> Result<TextTable, Failure>,
) -> Result<(), Failure> {
    let changed = || changes.places.iter().filter_map(|place| items.get(*place));
    let mut text = String::new();
    match output.output {
        OutputFormat::Json => {
            for item in changed() {
                text += &output::json_line(item)?;
            }
        }
        OutputFormat::Yaml => {
            for item in changed() {
                text += &format!("---\n{}", output::yaml(item)?);
            }
        }
        // All of them make the table, so that its columns stay as wide as they are.
        OutputFormat::Table | OutputFormat::Wide if !changes.places.is_empty() => {
            let all = table(json!({ "items": items }))?.text();
            let mut lines = all.lines();
            let first = lines.next().unwrap_or_default();
            if first != header {
                text += &format!("{first}\n");
                first.clone_into(header);
            }
            let lines: Vec<_> = lines.collect();
            text.extend(changes.places.iter().filter_map(|place| Some(format!("{}\n", lines.get(*place)?))));
        }
        OutputFormat::Table | OutputFormat::Wide => {}
    }
    output::print(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_different_or_gone_is_a_change() {
        let item = |name: &str, new: u64| json!({"metadata": {"name": name}, "status": {"new": new}});
        let mut seen = ShownItems::default();
        let of = |places: &[usize], gone: &[&str]| Changes {
            places: places.to_vec(),
            gone: gone.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(seen.take_in(&[item("a", 1), item("b", 1)]), of(&[0, 1], &[]));
        assert_eq!(seen.take_in(&[item("a", 1), item("b", 1)]), of(&[], &[]));
        assert_eq!(seen.take_in(&[item("a", 1), item("b", 2), item("c", 0)]), of(&[1, 2], &[]));
        assert_eq!(seen.take_in(&[item("b", 2)]), of(&[], &["a", "c"]));
        assert_eq!(seen.take_in(&[json!({"id": "op-1"})]), of(&[0], &["b"]));
    }
}
