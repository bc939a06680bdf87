//! `sluice`: the daemon of a host, or a verb that asks it.

use std::process::ExitCode;

use sluice::{
    allocator,
    cli::{self, Invocation},
    daemon, engine,
    host::panics,
    http::Bound,
    settings::Settings,
    telemetry::logs,
};

fn main() -> ExitCode {
    match cli::invocation() {
        Invocation::Verb(verb) => cli::end(verb.run()),
        Invocation::Daemon(flags) => cli::end(flags.settings().and_then(|settings| run(&settings))),
    }
}

/// The daemon, from its settings to its end.
fn run(settings: &Settings) -> Result<(), cli::Failure> {
    panics::abort_on_panic();
    allocator::keep_little();
    logs::start(settings.log_format, &settings.log_level).map_err(cli::Failure::usage)?;
    let runtime = daemon::runtime()?;
    // Bound before anything is attached: a socket on which another agent answers leaves nothing behind.
    let bound = runtime.block_on(Bound::new(settings))?;
    let running = engine::start(settings)?;
    let served = runtime.block_on(daemon::serve(settings, bound, &running));
    tracing::info!("the agent stops; steering goes on");
    runtime.shutdown_background();
    running.stop();
    Ok(served?)
}
