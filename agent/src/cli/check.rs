//! `sluice check`: what this kernel offers, and what that enables.

use std::path::PathBuf;

use clap::Args;
use comfy_table::Color;
use serde_json::json;

use super::{
    failure::Failure,
    output::{self, Output, TextTable, text},
};
use crate::{
    kernel::features::{self, FeatureCheck, Status},
    settings,
};

/// Report what this kernel offers, and what that enables
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sluice check\n\nExit code 1 when something is missing without which the agent cannot start."
)]
pub struct CheckArguments {
    /// Where the pins would go
    #[arg(long, env = "SLUICE_BPFFS", hide_env_values = true, default_value = settings::BPFFS, value_name = "DIR")]
    bpffs: PathBuf,
    #[command(flatten)]
    output: Output,
}

impl CheckArguments {
    pub fn run(self) -> Result<(), Failure> {
        let checks = features::report(&self.bpffs);
        let items: Vec<_> = checks.iter().map(as_json).collect();
        if !self.output.print(&json!({ "items": items }))? {
            let mut table = TextTable::new(&["", "FEATURE", "ENABLES", "DETAIL"]);
            for check in &checks {
                let colour = match check.status {
                    Status::Ok => Color::Green,
                    Status::Degraded => Color::Yellow,
                    Status::Missing => Color::Red,
                };
                let status = text(name(check.status)).fg(colour);
                table.row([status, text(&check.feature), text(&check.enables), text(&check.detail)]);
            }
            output::print(&table.text())?;
        }
        if checks.iter().any(|check| check.status == Status::Missing) {
            return Err(anyhow::anyhow!("the agent cannot start here: what is missing is listed above").into());
        }
        Ok(())
    }
}

fn as_json(check: &FeatureCheck) -> serde_json::Value {
    json!({
        "feature": check.feature,
        "enables": check.enables,
        "status": name(check.status),
        "detail": check.detail,
    })
}

const fn name(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}
