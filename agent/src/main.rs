//! Sluice: steers connections to weighted backends inside the Linux kernel.

mod cli;
mod control;
mod handle;
mod heap;
mod http;
mod kernel;
mod model;
mod observe;
mod plan;
mod probe;
mod run;
mod settings;
mod source;
mod telemetry;

fn main() -> std::process::ExitCode {
    cli::run()
}
