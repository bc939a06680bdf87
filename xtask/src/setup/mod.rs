//! `cargo xtask setup`: finds what building and testing need, installs what is missing, and says why. When nothing is
//! missing it takes a fraction of a second, so `cargo xtask test` starts with it.

mod compiler;
mod programs;

use std::{
    collections::BTreeSet,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Result, bail};

use crate::{
    apt::{Apt, run_shown},
    vm,
};
use programs::Requirement;

#[derive(clap::Args)]
pub struct Arguments {
    /// Also what every test needs: real servers and clients, an emulator, other kernels
    #[arg(long)]
    tests: bool,
}

/// What is going to happen besides building.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Format and lints.
    pub checks: bool,
    /// Black-box tests on this machine, with real servers and clients.
    pub programs: bool,
    /// Network namespaces on this machine.
    pub namespaces: bool,
    /// Virtual machines.
    pub machines: bool,
    /// What Sluice is compared with.
    pub peers: bool,
}

/// Makes everything ready and says what is there.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let start = Instant::now();
    let tests = arguments.tests;
    ensure_ready(Needs { checks: tests, programs: tests, namespaces: tests, machines: tests, ..Needs::default() })?;
    if arguments.tests {
        for kernel in vm::KERNELS {
            let kernel = vm::obtain(kernel)?;
            println!("virtual machines run Linux {}", kernel.release);
        }
    }
    println!("Everything is there ({:.1} s).", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Installs what is missing. The error, if that is not possible here, names the commands that a person has to run.
pub fn ensure_ready(needs: Needs) -> Result<()> {
    let apt = Apt::find();
    ensure_programs(needs, apt.as_ref())?;
    if needs.machines {
        offer_virtiofsd(apt.as_ref());
    }
    if needs.checks {
        ensure_components()?;
    }
    compiler::ensure_ready(apt.as_ref())
}

fn ensure_programs(needs: Needs, apt: Option<&Apt>) -> Result<()> {
    let mut missing: Vec<&Requirement> =
        programs::needed(needs).filter(|requirement| !requirement.is_there()).collect();
    // One program may be needed for several things; the first reason is enough.
    let mut names = BTreeSet::new();
    missing.retain(|requirement| names.insert(requirement.program));
    if missing.is_empty() {
        return Ok(());
    }
    for Requirement { program, package, why, .. } in &missing {
        println!("missing: {program} ({package}): {why}");
    }
    let Some(apt) = apt else {
        let names: Vec<_> = missing.iter().map(|requirement| requirement.program).collect();
        bail!("install these programs and try again: {}", names.join(", "));
    };
    let packages: Vec<&str> = missing.iter().map(|requirement| requirement.package).collect();
    apt.install(&packages)?;
    match missing.iter().find(|requirement| !requirement.is_there()) {
        Some(still) => bail!("{} is still missing after its package {} was installed", still.program, still.package),
        None => Ok(()),
    }
}

/// Older Debians have it in a package of qemu, newer ones in its own. Without it virtual machines run fewer tests.
fn offer_virtiofsd(apt: Option<&Apt>) {
    const PACKAGE: &str = "virtiofsd";
    if vm::virtiofsd().is_some() {
        return;
    }
    if let Some(apt) = apt.filter(|apt| apt.may_install() && apt.offers(PACKAGE))
        && let Err(error) = apt.install(&[PACKAGE])
    {
        println!("{PACKAGE} cannot be installed: {error:#}");
    }
}

/// The formatter and the linter of the toolchain that runs this.
fn ensure_components() -> Result<()> {
    let present = |tool: &str| {
        let output = crate::build::cargo().args([tool, "--version"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let missing: Vec<&str> = [("fmt", "rustfmt"), ("clippy", "clippy")]
        .into_iter()
        .filter(|(tool, _)| !present(tool))
        .map(|(_, name)| name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing: {}: the tests begin with format and lints", missing.join(" and "));
    run_shown(Command::new("rustup").args(["component", "add"]).args(missing))
}
