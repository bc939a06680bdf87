//! `sluice weight`: change the weight of one backend.

use clap::Args;
use serde_json::{Value, json};

use super::{client::Client, failure::Failure, output, zero};
use crate::{
    http::views::BackendView,
    model::{Target, document::MAX_WEIGHT},
};

/// Change the weight of one backend
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sluice weight shop/n1 5      n1 gets 5 parts; the other backends of its group keep theirs"
)]
pub struct WeightArguments {
    /// SERVICE/BACKEND
    backend: Target,
    /// 0 to 1000000; 0 takes no new connections
    #[arg(allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_WEIGHT)))]
    weight: u32,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

impl WeightArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        if let Target::Node(node) = &self.backend {
            return Err(Failure::Usage(format!(
                "node {node} has no weight of its own: name one backend, as in shop/n1"
            )));
        }
        let path = zero::path(&self.backend, "");
        let patch = json!({ "weight": self.weight });
        if self.dry_run {
            let plan: Value = client.patch(&format!("{path}?dryRun=true"), &patch).await?;
            return output::print(&output::json(&plan)?);
        }
        let view: BackendView = client.patch(&path, &patch).await?;
        if self.output.print(&view)? {
            return Ok(());
        }
        let Self { backend, weight, .. } = self;
        let status = &view.status;
        let share = output::percentage(status.programmed_share);
        let zeroed = if status.zero.is_some() { "; it is zeroed and takes nothing until `sluice restore`" } else { "" };
        output::print(&format!("{backend} weight {weight}: {share} of the connections{zeroed}\n"))
    }
}
