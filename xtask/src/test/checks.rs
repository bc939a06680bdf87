//! The stages that ask no kernel. One more is a line in [`STAGES`] and a function below.

use anyhow::Result;

use super::dependencies;
use crate::{
    binaries::statically,
    build::cargo,
    report::{self, Outcome},
};

/// What runs a stage.
type Check = fn() -> Result<Outcome>;

/// Names and stages, in the order in which they run.
pub const STAGES: [(&str, Check); 5] = [
    ("format", format),
    ("lints", lints),
    ("lints of black-box tests", lints_of_black_box_tests),
    ("documentation", documentation),
    ("dependencies", dependencies::check),
];

/// Those of the unit tests whose name contains the filter.
pub fn unit_tests(filter: Option<&str>) -> Result<Outcome> {
    let mut command = statically("test");
    command.args(["--no-fail-fast", "--"]).args(filter);
    report::tests(&mut command, filter)
}

fn format() -> Result<Outcome> {
    report::check(cargo().args(["fmt", "--all", "--", "--check"]))
}

fn lints() -> Result<Outcome> {
    clippy(&["--workspace", "--all-targets"])
}

/// `--all-targets` leaves them out, as `cargo test` does.
fn lints_of_black_box_tests() -> Result<Outcome> {
    clippy(&["--package", "sluice-tests", "--test", "integration"])
}

fn documentation() -> Result<Outcome> {
    let mut command = cargo();
    command.args(["doc", "--workspace", "--exclude", "sluice-ebpf", "--no-deps"]);
    report::check(command.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn clippy(selection: &[&str]) -> Result<Outcome> {
    let mut command = cargo();
    report::check(command.arg("clippy").args(selection).args(["--", "--deny", "warnings"]))
}
