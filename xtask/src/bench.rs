//! `cargo xtask bench`: what steering costs, against the same machine without it.

use std::{
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};

use crate::{build, setup, test::missing_rights};

#[derive(clap::Args)]
pub struct Arguments {
    /// Only groups whose name contains this: hooks, added, ratios, zero, scale
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Fewer rounds: a first look, not a figure to quote
    #[arg(long)]
    quick: bool,
}

/// Builds for speed, measures, prints the table and leaves the figures in target/bench.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(missing) = missing_rights() {
        bail!("the bench needs rights that this user has not here: {missing}");
    }
    setup::ensure_ready(setup::Needs { namespaces: true, ..setup::Needs::default() })?;
    let directory = build::release(&["sluice", "sluice-bench", "sluice-test-client"])?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?.as_secs();
    let file = build::target_dir().join(format!("bench/{seconds}.json"));
    let mut bench = Command::new(directory.join("sluice-bench"));
    bench.arg("--json").arg(file);
    if let Some(filter) = &arguments.filter {
        bench.args(["--filter", filter]);
    }
    let status = bench.args(arguments.quick.then_some("--quick")).status().context("starting the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
