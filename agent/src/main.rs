//! Sluice: steers connections to weighted backends inside the Linux kernel.
#![allow(dead_code)]

mod cli;
mod handle;
mod http;
mod kernel;
mod model;
mod observe;
mod plan;
mod run;
mod settings;
mod source;
mod telemetry;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

#[derive(Parser)]
#[command(version, about)]
enum Verb {
    /// Runs the daemon.
    Agent {
        #[arg(long, env = "SLUICE_CONFIG")]
        config: Option<PathBuf>,
        #[arg(long, env = "SLUICE_SOCKET")]
        socket: Option<PathBuf>,
        #[arg(long, env = "SLUICE_TOKEN_FILE")]
        token_file: Option<PathBuf>,
        #[command(flatten)]
        flags: Box<settings::Layer>,
    },
    /// Detaches the programs and removes every pin.
    Uninstall {
        #[arg(long, default_value = settings::BPFFS)]
        bpffs: PathBuf,
        #[arg(long, default_value = settings::STATE_DIR)]
        state_dir: PathBuf,
        #[arg(long)]
        keep_state: bool,
    },
}

fn main() -> ExitCode {
    let result = match Verb::parse() {
        Verb::Agent { config, socket, token_file, flags } => {
            let flags = settings::Layer { socket, token_file, ..*flags };
            cli::agent::run(flags, config.as_ref())
        }
        Verb::Uninstall { bpffs, state_dir, keep_state } => kernel::uninstall(&bpffs).and_then(|removed| {
            removed.iter().for_each(|path| println!("removed {}", path.display()));
            if !keep_state && state_dir.exists() {
                std::fs::remove_dir_all(&state_dir)?;
            }
            Ok(())
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
