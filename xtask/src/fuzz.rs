//! `cargo xtask fuzz`: one of the fuzz targets for as long as wanted, led by what its inputs reach. libFuzzer asks only for
//! what every compiler can do to code; memory errors that no check of Rust finds, it does not look for.

use std::{
    fs,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, ensure};

use crate::build::{cargo, target_dir, workspace};

const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// LLVM's pass that counts which ways were gone.
const COVERAGE: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

#[derive(clap::Args)]
pub struct Arguments {
    /// yaml, json, btf, netlink or flight
    target: String,
    /// How long
    #[arg(long, value_name = "NUMBER", default_value_t = 60)]
    seconds: u64,
}

/// Builds and runs it. What breaks it is left in a file, whose name is shown.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Arguments { target, seconds } = arguments;
    let directory = target_dir().join("fuzz");
    // The same versions of everything else.
    fs::copy(workspace().join("Cargo.lock"), workspace().join("tests/fuzz/Cargo.lock"))
        .context("copying Cargo.lock")?;
    let mut build = cargo();
    build.args(["build", "--manifest-path", "tests/fuzz/Cargo.toml", "--target", TRIPLE]);
    build.args(["--config", &format!("target.{TRIPLE}.rustflags={COVERAGE:?}")]).arg("--target-dir").arg(&directory);
    ensure!(build.status().context("starting cargo build")?.success(), "the fuzz targets do not build");
    let [corpus, seeds, found] = ["corpus", "seeds", "found"].map(|what| directory.join(what).join(target));
    for place in [&corpus, &seeds, &found] {
        fs::create_dir_all(place).with_context(|| format!("making {}", place.display()))?;
    }
    let mut run = Command::new(directory.join(TRIPLE).join("debug/sluice-fuzz"));
    run.env("SLUICE_FUZZ_TARGET", target).env("SLUICE_FUZZ_SEEDS", &seeds).args([&corpus, &seeds]);
    run.arg(format!("-max_total_time={seconds}")).arg(format!("-artifact_prefix={}/", found.display()));
    let status = run.status().context("starting the fuzzer")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
