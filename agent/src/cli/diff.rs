//! `sluice diff`: what applying files would change.

use clap::Args;
use serde_json::Value;
use similar::TextDiff;

use super::{
    apply::{self, ApplyTerms},
    client::Client,
    failure::Failure,
    files::Sources,
    output,
};

/// Show what `apply` would change, as a text difference
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sluice diff -f shop.yaml\n  sluice diff -f /etc/sluice/services --prune\n\n\
        Prints nothing when nothing would change. Exit codes: 0 nothing would change, 1 something would; more than 1: it could \
        not be found out (2, where other verbs have 1).")]
pub struct DiffArguments {
    #[command(flatten)]
    sources: Sources,
    /// As `apply --prune`: remove the services that are not in the files
    #[arg(long)]
    prune: bool,
}

impl DiffArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        // 1 is taken: it says that something differs.
        if self.show(client).await.map_err(|failure| Failure::Unanswered(Box::new(failure)))? {
            return Err(Failure::Differs);
        }
        Ok(())
    }

    /// Whether something differs.
    async fn show(&self, client: &Client) -> Result<bool, Failure> {
        let view = apply::send(client, &self.sources, ApplyTerms::look(self.prune), true).await?;
        let mut text = String::new();
        for item in &view.items {
            if item.before.is_some() || item.after.is_some() {
                text.push_str(&difference(&item.object, item.before.as_ref(), item.after.as_ref())?);
            }
        }
        let differs = !text.is_empty();
        output::print(&if output::has_colour() { coloured(&text) } else { text })?;
        Ok(differs)
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
