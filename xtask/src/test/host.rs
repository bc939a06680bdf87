//! The black-box tests on the running kernel.

use std::{fs, process::Command};

use anyhow::Result;

use crate::{
    binaries::Binaries,
    build::workspace,
    report::{self, Outcome},
};

/// Tests that run at the same time; most of their time is waiting.
const THREADS: &str = "4";

/// Runs the tests.
pub fn run(binaries: &Binaries, filter: Option<&str>) -> Result<Outcome> {
    let mut command = Command::new(&binaries.tests);
    command.current_dir(workspace().join("tests"));
    command.args(["--test-threads", THREADS]).args(filter);
    command.env("SLUICE_BIN", &binaries.agent).env("SLUICE_TEST_CLIENT", &binaries.client);
    report::tests(&mut command, filter)
}

/// The release of the running kernel.
pub fn kernel_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}
