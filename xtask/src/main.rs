//! The project's own tasks: `cargo xtask build` and its neighbours.

mod apt;
mod bench;
mod binaries;
mod build;
mod compare;
mod demo;
mod fuzz;
mod report;
mod rights;
mod setup;
mod test;
// What `agent/build.rs` alone uses looks dead from here.
#[allow(dead_code)]
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds, shows, tests and measures Sluice.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Finds or installs what building and testing need
    Setup(setup::Arguments),
    /// Builds the agent with the eBPF programs inside
    Build(build::Arguments),
    /// Shows the product at work, in two minutes and with no risk to this machine
    Demo(demo::Arguments),
    /// Runs every test: format, lints, units, and black-box tests here and under other kernels
    Test(test::Arguments),
    /// Looks for bytes that break what reads them
    Fuzz(fuzz::Arguments),
    /// Measures what steering costs
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Build(arguments) => build::run(&arguments),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Fuzz(arguments) => fuzz::run(&arguments),
        Task::Bench(arguments) => bench::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
