//! `sluice diff`: what applying files would change.

use clap::Args;
use serde_json::Value;
use similar::TextDiff;

use super::{apply, client::Client, failure::Failure, files::Sources, output};

/// Show what `apply` would change, as a text difference
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sluice diff -f shop.yaml\n\nPrints nothing when nothing would change.")]
pub struct DiffArguments {
    #[command(flatten)]
    sources: Sources,
}

impl DiffArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let view = apply::send(client, &self.sources, true).await?;
        let mut text = String::new();
        for item in &view.items {
            if item.before.is_some() || item.after.is_some() {
                text.push_str(&difference(&item.object, item.before.as_ref(), item.after.as_ref())?);
            }
        }
        output::print(&if output::has_colour() { coloured(&text) } else { text })
    }
}

fn difference(object: &str, before: Option<&Value>, after: Option<&Value>) -> Result<String, Failure> {
    let render = |value: Option<&Value>| value.map_or(Ok(String::new()), output::yaml);
    let (before, after) = (render(before)?, render(after)?);
    let diff = TextDiff::from_lines(&before, &after);
    Ok(diff.unified_diff().header(&format!("{object} (now)"), &format!("{object} (then)")).to_string())
}

fn coloured(diff: &str) -> String {
    let paint = |line: &str| match line.as_bytes().first() {
        Some(b'+') => format!("\x1b[32m{line}\x1b[0m\n"),
        Some(b'-') => format!("\x1b[31m{line}\x1b[0m\n"),
        Some(b'@') => format!("\x1b[36m{line}\x1b[0m\n"),
        _ => format!("{line}\n"),
    };
    diff.lines().map(paint).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_names_the_object_and_the_lines() {
        let (before, after) = (json!({"a": 1, "b": {"c": 2}}), json!({"a": 1, "b": {"c": 3}}));
        let text = difference("service/shop", Some(&before), Some(&after)).unwrap();
        for line in ["--- service/shop (now)", "+++ service/shop (then)", "-  c: 2", "+  c: 3", " a: 1"] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(difference("service/shop", None, Some(&after)).unwrap().contains("+a: 1"));
        assert_eq!(coloured("+a\n b\n"), "\x1b[32m+a\x1b[0m\n b\n");
    }
}
