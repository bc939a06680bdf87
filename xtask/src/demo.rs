//! `cargo xtask demo`: the product at work, in namespaces and a cgroup of its own, here or in a virtual machine.

use std::{
    io::{IsTerminal, stdin, stdout},
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{binaries::built, build, rights::missing_rights, setup, vm};

/// The kernel of the virtual machine when none is named.
const KERNEL: &str = "6.12";

#[derive(clap::Args)]
pub struct Arguments {
    /// Leave everything up at the end, and say which commands to try
    #[arg(long)]
    stay: bool,
    /// In a virtual machine with this kernel, as for users without the rights to steer here
    #[arg(long, value_name = "KERNEL")]
    vm: Option<String>,
    /// What emulates the processor of the virtual machine: tcg works everywhere, kvm is faster
    #[arg(long, value_name = "NAME", default_value = "tcg", env = "SLUICE_VM_ACCELERATOR")]
    accelerator: String,
}

/// Sets up what is missing, builds, and plays the demo.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let missing = missing_rights();
    match (&arguments.vm, missing) {
        (Some(kernel), _) => in_machine(arguments, kernel),
        (None, Some(missing)) => {
            println!("This user has not the rights to steer here ({missing}): the demo plays in a virtual machine.");
            in_machine(arguments, KERNEL)
        }
        (None, None) => here(arguments),
    }
}

fn here(arguments: &Arguments) -> Result<ExitCode> {
    setup::ensure_ready(setup::Needs { namespaces: true, ..setup::Needs::default() })?;
    println!("Building.");
    let directory = build::release(&["sluice", "sluice-demo", "sluice-test-client"])?;
    let mut demo = Command::new(directory.join("sluice-demo"));
    let status = demo.args(arguments.stay.then_some("--stay")).status().context("starting the demo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_machine(arguments: &Arguments, kernel: &str) -> Result<ExitCode> {
    setup::ensure_ready(setup::Needs { machines: true, ..setup::Needs::default() })?;
    println!("Building.");
    let names = ["sluice", "sluice-demo", "sluice-test-client"];
    // Not for speed: the emulated processor is slow either way, and `cargo xtask test` builds the same.
    let programs = built(names, &["--bins"])?;
    let interactive = arguments.stay && stdin().is_terminal();
    let live = if stdout().is_terminal() { "SLUICE_DEMO_LIVE=1 " } else { "" };
    let command = match (interactive, arguments.stay) {
        (true, _) => format!("{live}sluice-demo --stay --shell </dev/ttyS1"),
        (false, true) => format!("{live}sluice-demo --stay"),
        (false, false) => format!("{live}sluice-demo"),
    };
    let programs = programs.iter().map(AsRef::as_ref).zip(names).collect();
    let job = vm::Job { programs, command, interactive, shared: false, limit: vm::LIMIT };
    let held = vm::run(kernel, &job, &arguments.accelerator)?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
