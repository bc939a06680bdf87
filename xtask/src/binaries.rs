//! The programs that the black-box tests need, linked statically so that the same files run here and in a virtual
//! machine that holds nothing else.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::build::cargo;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// The agent.
    pub agent: PathBuf,
    /// The harness's client.
    pub client: PathBuf,
    /// The tests.
    pub tests: PathBuf,
}

impl Binaries {
    /// Builds all of them.
    pub fn build() -> Result<Self> {
        let [agent, client, tests] =
            built(["sluice", "sluice-test-client", "integration"], &["--bins", "--test", "integration"])?;
        Ok(Self { agent, client, tests })
    }
}

/// Builds for any machine what `selection` says to cargo, and returns where the programs of these names are.
pub fn built<const N: usize>(names: [&str; N], selection: &[&str]) -> Result<[PathBuf; N]> {
    let built = executables(selection)?;
    let mut files = names.map(|_| PathBuf::new());
    for (file, name) in files.iter_mut().zip(names) {
        *file = find(&built, name)?;
    }
    Ok(files)
}

/// A cargo command for the whole workspace, save the eBPF programs, that links statically. The same selection of
/// packages every time: another one has other features of its dependencies, and builds them again.
pub fn statically(verb: &str) -> Command {
    let mut command = cargo();
    command.args([verb, "--workspace", "--exclude", "sluice-ebpf", "--target", TARGET]);
    command.args(["--config", &format!("target.{TARGET}.rustflags=['-Ctarget-feature=+crt-static']")]);
    command
}

/// The parts of cargo's messages that matter here.
#[derive(Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

fn find(executables: &[(String, PathBuf)], name: &str) -> Result<PathBuf> {
    let found = executables.iter().find(|(target, _)| target == name);
    Ok(found.with_context(|| format!("cargo built no program {name}"))?.1.clone())
}

/// Builds, and returns the name and file of each program.
fn executables(selection: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut command = statically("build");
    command.args(selection).args(["--message-format", "json-render-diagnostics"]);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("starting {command:?}"))?;
    ensure!(output.status.success(), "this does not compile");
    let text = String::from_utf8(output.stdout).context("reading cargo's messages")?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Message>(line).ok());
    Ok(messages.filter_map(|message| Some((message.target?.name, message.executable?))).collect())
}
