//! The project's own tasks: `cargo xtask build` and its neighbours.

mod build;
// What `agent/build.rs` alone uses looks dead from here.
#[allow(dead_code)]
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Sets up, builds and tests Sluice.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Builds the agent with the eBPF programs inside
    Build(build::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Build(arguments) => build::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
