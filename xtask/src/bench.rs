//! `cargo xtask bench`: what steering costs, against the same machine without it, and what real clients lose by it.

use std::{
    process::{Command, ExitCode},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{binaries::built, build, compare, rights::missing_rights, setup, vm};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    task: Option<Task>,
    /// Only groups whose name contains this: hooks, added, ratios, zero, scale, drain, health, detect, matrix, curves.
    /// After a slash, a part of the group: matrix/tls
    #[arg(long, value_name = "NAME")]
    filter: Option<String>,
    /// Fewer rounds: a first look, not a figure to quote
    #[arg(long)]
    quick: bool,
    /// Write the page of the curves into the repository, as tests/reports/curves.md
    #[arg(long, conflicts_with = "vm")]
    publish: bool,
    /// In a virtual machine with this kernel: matrix and detect alone, since an emulated processor's times say nothing
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
    /// What emulates the processor of the virtual machine: tcg works everywhere, kvm is faster
    #[arg(long, value_name = "NAME", default_value = "tcg", env = "SLUICE_VM_ACCELERATOR")]
    accelerator: String,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Measures Sluice beside HAProxy, nginx, nftables and, in a virtual machine, IPVS
    Compare(compare::Arguments),
}

const MATRIX: &str = "matrix";
/// What virtual machines measure: counts, and waits of seconds.
const IN_MACHINES: [&str; 2] = [MATRIX, "detect"];

/// Builds for speed, measures, prints the table and leaves the figures in target/bench.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    if let Some(Task::Compare(arguments)) = &arguments.task {
        return compare::run(arguments);
    }
    if let Some(kernel) = &arguments.vm {
        return in_machine(arguments, kernel);
    }
    if let Some(missing) = missing_rights() {
        bail!("the bench needs rights that this user has not here: {missing}");
    }
    if arguments.publish && (arguments.quick || arguments.filter.as_deref() != Some("curves")) {
        bail!("only the whole page of the curves can be published: cargo xtask bench --filter curves --publish");
    }
    let group = arguments.filter.as_deref().and_then(|filter| filter.split('/').next());
    let programs = group.is_none_or(|group| MATRIX.contains(group));
    setup::ensure_ready(setup::Needs { namespaces: true, programs, ..setup::Needs::default() })?;
    let directory = build::release(&["sluice", "sluice-bench", "sluice-test-client"])?;
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?.as_secs();
    let file = build::target_dir().join(format!("bench/{seconds}.json"));
    let mut bench = Command::new(directory.join("sluice-bench"));
    bench.arg("--json").arg(file);
    if let Some(filter) = &arguments.filter {
        bench.args(["--filter", filter]);
    }
    if arguments.publish {
        bench.arg("--pages").arg(build::workspace().join("tests/reports"));
    }
    let status = bench.args(arguments.quick.then_some("--quick")).status().context("starting the bench")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_machine(arguments: &Arguments, kernel: &str) -> Result<ExitCode> {
    let filter = arguments.filter.as_deref().unwrap_or(MATRIX);
    let measured = IN_MACHINES.iter().any(|group| filter.starts_with(group));
    ensure!(measured, "virtual machines measure {} alone: --filter NAME", IN_MACHINES.join(" and "));
    setup::ensure_ready(setup::Needs { machines: true, programs: true, ..setup::Needs::default() })?;
    let names = ["sluice", "sluice-bench", "sluice-test-client"];
    let programs = built(names, &["--bins"])?;
    let quick = if arguments.quick { "--quick" } else { "" };
    let command = format!("sluice-bench --json /tmp/bench.json {quick} --filter {}", vm::quoted(filter));
    let programs = programs.iter().map(AsRef::as_ref).zip(names).collect();
    let job = vm::Job { programs, command, interactive: false, shared: true, limit: vm::LIMIT };
    let held = vm::run(kernel, &job, &arguments.accelerator)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
