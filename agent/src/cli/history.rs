//! `sluice history` and `sluice undo`: who changed what, and a way back.

use std::fmt::Write;

use clap::Args;
use serde_json::json;

use super::{
    client::{Client, with_query},
    failure::Failure,
    names::Named,
    output::{self, Output},
};
use crate::{
    http::views::List,
    model::words::whole_number,
    view::history::{HistoryEntry, UndoView},
};

/// Show which changes were asked for, by whom, the newest first
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice history\n  sluice history shop --limit 5\n  sluice history node/node-1 -o json\n\n`sluice undo CHANGE` takes one back."
)]
pub struct HistoryArguments {
    /// SERVICE, SERVICE/BACKEND or node/NODE [default: all]
    #[arg(value_name = "NAME")]
    object: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 20, value_name = "NUMBER", value_parser = whole_number::<usize>)]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

/// Put back what a change replaced: documents, and zeros without their drains
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice undo                     the last change\n  sluice undo 1795248000000000    one of `sluice history`\n  sluice undo --dry-run\n\nWhat has been changed since is left alone, and said. An undo can be undone."
)]
pub struct UndoArguments {
    /// The change's number in the history [default: the last change]
    #[arg(value_name = "CHANGE", value_parser = whole_number::<u64>)]
    change: Option<u64>,
    /// Do it even if a service is left without enough open capacity
    #[arg(long)]
    force: bool,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

impl HistoryArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let object = self.object.as_deref().map(object);
        let path = with_query("/v1/history", &[("object", object), ("limit", Some(self.limit.to_string()))]);
        let list: List<HistoryEntry> = client.get(&path).await?;
        if self.output.print(&list)? {
            return Ok(());
        }
        if list.items.is_empty() {
            output::note("nobody has changed anything");
        }
        output::print(&list.items.iter().fold(String::new(), |text, entry| text + &lines(entry)))
    }
}

impl UndoArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let change = match self.change {
            Some(change) => change,
            None => {
                let list: List<HistoryEntry> = client.get("/v1/history?limit=1").await?;
                let last = list.items.first();
                last.map(|entry| entry.change)
                    .ok_or_else(|| Failure::Failed(anyhow::anyhow!("there is no change to undo")))?
            }
        };
        let wanted = |is_wanted: bool| is_wanted.then(|| "true".to_owned());
        let path = with_query(
            &format!("/v1/history/{change}/undo"),
            &[("dryRun", wanted(self.dry_run)), ("force", wanted(self.force))],
        );
        let view: UndoView = client.post(&path, &json!({})).await?;
        if self.output.print(&view)? {
            return Ok(());
        }
        let mut text = String::new();
        let would = if view.dry_run { "dry run: " } else { "" };
        for item in &view.items {
            // Writing to a text does not fail.
            let _ = writeln!(text, "{would}{} {}", item.object, item.effect.words());
        }
        for line in &view.plan {
            let _ = writeln!(text, "  {line}");
        }
        if !view.dry_run {
            let micros = view.programmed_in_microseconds;
            let _ = writeln!(text, "change {change} is undone (in the kernel after {micros} us)");
        }
        output::print(&text)
    }
}

/// The object that a name stands for, as the history has it.
fn object(name: &str) -> String {
    match Named::read(name) {
        Named::Service(service) => format!("service/{service}"),
        Named::Node(node) => format!("node/{node}"),
        Named::Backend { service, backend } => format!("{service}/{backend}"),
    }
}

/// Two lines, of which the second says who.
fn lines(entry: &HistoryEntry) -> String {
    let HistoryEntry { change, time, kind: _, object, message, by, undoable } = entry;
    let cannot = if *undoable { "" } else { "; cannot be undone" };
    format!(
        "{change}  {time:.0}  {object}: {}\n                  by {}{cannot}\n",
        output::printable(message),
        output::printable(by)
    )
}
