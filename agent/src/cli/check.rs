//! `sluice check`: what this kernel offers, and what that enables.

use std::path::PathBuf;

use clap::Args;
use comfy_table::Color;
use serde_json::json;

use super::{
    failure::Failure,
    output::{self, Output, Table, text},
};
use crate::{
    kernel::probe::{self, Finding, Status},
    settings,
};

/// Report what this kernel offers, and what that enables
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sluice check\n\nExit code 1 when something is missing without which the agent cannot start."
)]
pub struct Check {
    /// Where the pins would go
    #[arg(long, env = "SLUICE_BPFFS", hide_env_values = true, default_value = settings::BPFFS, value_name = "DIR")]
    bpffs: PathBuf,
    #[command(flatten)]
    output: Output,
}

impl Check {
    pub fn run(self) -> Result<(), Failure> {
        let findings = probe::report(&self.bpffs);
        let items: Vec<_> = findings.iter().map(as_json).collect();
        if !self.output.print(&json!({ "items": items }))? {
            let mut table = Table::new(&["", "FEATURE", "ENABLES", "DETAIL"]);
            for finding in &findings {
                let colour = match finding.status {
                    Status::Ok => Color::Green,
                    Status::Degraded => Color::Yellow,
                    Status::Missing => Color::Red,
                };
                let status = text(name(finding.status)).fg(colour);
                table.row([status, text(&finding.feature), text(&finding.enables), text(&finding.detail)]);
            }
            output::print(&table.text())?;
        }
        if findings.iter().any(|finding| finding.status == Status::Missing) {
            return Err(anyhow::anyhow!("the agent cannot start here: what is missing is listed above").into());
        }
        Ok(())
    }
}

fn as_json(finding: &Finding) -> serde_json::Value {
    json!({
        "feature": finding.feature,
        "enables": finding.enables,
        "status": name(finding.status),
        "detail": finding.detail,
    })
}

const fn name(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}
