//! `sluice explain`: where a connection would go, and why.

use clap::Args;

use super::{
    client::{Client, with_query},
    failure::Failure,
    output::{self, Output, TextTable, maybe, percent, text},
};
use crate::view::explain::Explanation;

/// Explain where a connection would go, and why
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice explain 10.96.0.10:80\n  sluice explain 10.96.0.10:53/udp\n  sluice explain 10.96.0.10:80 --from pid:4711"
)]
pub struct ExplainArguments {
    /// Where to, such as 10.96.0.10:80 or `[fd00::1]:53/udp`
    to: String,
    /// Who calls: an IP address that the socket is bound to, pid:NUMBER or cgroup:PATH; several separated by commas
    #[arg(long)]
    from: Option<String>,
    #[command(flatten)]
    output: Output,
}

impl ExplainArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = with_query("/v1/explain", &[("to", Some(self.to)), ("from", self.from)]);
        let explanation: Explanation = client.get(&path).await?;
        if self.output.print(&explanation)? {
            return Ok(());
        }
        output::print(&show(&explanation))
    }
}

fn show(explanation: &Explanation) -> String {
    let mut shown = format!("{}\n", explanation.message);
    for assumed in &explanation.assumed {
        shown += &format!("  supposing that {assumed}\n");
    }
    if !explanation.candidates.is_empty() {
        let mut table = TextTable::new(&["BACKEND", "ADDRESS", "NODE", "GROUP", "SHARE"]);
        for candidate in &explanation.candidates {
            table.row([
                text(&candidate.backend),
                text(&candidate.address),
                maybe(candidate.node.as_ref()),
                maybe(candidate.group.as_ref()),
                percent(Some(candidate.share)),
            ]);
        }
        shown += &format!("\n{}", table.text());
    }
    if !explanation.out.is_empty() {
        let mut table = TextTable::new(&["OUT", "ADDRESS", "WHY"]).sparing(&["ADDRESS"]);
        for out in &explanation.out {
            table.row([text(&out.backend), text(&out.address), text(&out.why)]);
        }
        shown += &format!("\n{}", table.text());
    }
    shown
}
