//! `sluice restore`: give a zeroed node or backend its weight back.

use clap::Args;
use serde_json::{Value, json};

use super::{candidates, client::Client, failure::Failure, names, output, zero};
use crate::{http::views::RestoreView, model::Target, view::status::AdminState};

/// Give a zeroed or drained node or backend its weight back; a drain that lasts is cancelled
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sluice restore node/node-1\n  sluice restore shop/n1")]
pub struct RestoreArguments {
    /// node/NODE or SERVICE/BACKEND
    #[arg(value_parser = names::target, add = candidates::targets())]
    target: Target,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

impl RestoreArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = zero::path(&self.target, "/restore");
        if self.dry_run {
            let plan: Value = client.post(&format!("{path}?dryRun=true"), &json!({})).await?;
            return output::print(&output::json(&plan)?);
        }
        let view: RestoreView = client.post(&path, &json!({})).await?;
        if self.output.print(&view)? {
            return Ok(());
        }
        let rest = match (view.state, view.unhealthy) {
            (AdminState::Ready, 0) => "it takes connections by its weight again".to_owned(),
            (AdminState::Ready, unhealthy) => {
                format!("its backends take connections again, {unhealthy} of them once they are found ready")
            }
            (AdminState::Zero | AdminState::Draining | AdminState::Drained, _) => "its node is still zeroed".to_owned(),
            (AdminState::Warming, _) => "it takes connections again, and warms up".to_owned(),
            (AdminState::Unhealthy, _) => {
                "it takes connections once it is found ready; `sluice describe` says what is known".to_owned()
            }
        };
        let micros = view.programmed_in_microseconds;
        output::print(&format!("{} is restored: {rest} (in the kernel after {micros} us)\n", view.target))
    }
}
