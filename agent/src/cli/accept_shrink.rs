//! `sluice accept-shrink`: let happen what the brake holds.

use clap::Args;
use serde_json::json;

use super::{client::Client, failure::Failure, output};
use crate::http::brake::ShrinkAnswer;

/// Let watched files remove what the agent holds, because it is more than a share of all
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sluice accept-shrink\n\nWhat is held is in the events (`sluice events`), and in what `/readyz` answers."
)]
pub struct AcceptShrinkArguments {
    #[command(flatten)]
    output: output::Output,
}

impl AcceptShrinkArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let answer: ShrinkAnswer = client.post("/v1/accept-shrink", &json!({})).await?;
        if self.output.print(&answer)? {
            return Ok(());
        }
        output::print(&format!("in force: {}\n", answer.files.join(", ")))
    }
}
