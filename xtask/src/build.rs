//! `cargo xtask build`: the agent, with the eBPF programs that its build script compiles.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

#[derive(clap::Args)]
pub struct Arguments {
    /// Optimise, and leave the result in target/release
    #[arg(long)]
    release: bool,
}

/// Builds the agent and says where it is.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let profile = if arguments.release { "release" } else { "debug" };
    let mut command = cargo();
    command.args(["build", "--package", "sluice"]);
    if arguments.release {
        command.arg("--release");
    }
    let status = command.status().context("starting cargo build")?;
    ensure!(status.success(), "cargo build failed");
    println!("{}", target_dir().join(profile).join("sluice").display());
    Ok(ExitCode::SUCCESS)
}

/// Builds these programs of the workspace for speed, and returns the directory that they are in.
pub fn release(programs: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command.args(["build", "--release", "--package", "sluice", "--package", "sluice-tests"]);
    for program in programs {
        command.args(["--bin", program]);
    }
    let status = command.status().context("starting cargo build")?;
    ensure!(status.success(), "cargo build failed");
    Ok(target_dir().join("release"))
}

/// The cargo that runs this task, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(workspace());
    command
}

/// The workspace's root directory.
pub fn workspace() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where cargo leaves what it builds.
pub fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), |given| workspace().join(given))
}
