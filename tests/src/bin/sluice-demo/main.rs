//! The product at work in about two minutes, with no risk to the machine: `cargo xtask demo` builds and runs this.
//!
//! Nothing is steered but one cgroup that exists for the demo, and no packet leaves its network namespaces.

mod load;
mod screen;
mod show;
mod stage;

use std::{env, process::ExitCode};

use anyhow::{Result, bail};
use sluice_tests::interrupt;

use show::Show;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).peekable();
    let result = if arguments.next_if(|word| word == "load").is_some() {
        load::main(arguments).map(|()| ExitCode::SUCCESS)
    } else {
        stay(arguments).and_then(play)
    };
    result.unwrap_or_else(|error| {
        eprintln!("sluice-demo: {error:#}");
        ExitCode::FAILURE
    })
}

/// What happens after the last act.
#[derive(Clone, Copy, Debug, Default)]
struct Stay {
    /// Everything stays up.
    stay: bool,
    /// As long as a shell runs, for those who have no other terminal.
    shell: bool,
}

fn stay(arguments: impl Iterator<Item = String>) -> Result<Stay> {
    let mut stay = Stay::default();
    for word in arguments {
        match word.as_str() {
            "--stay" => stay.stay = true,
            "--shell" => stay.shell = true,
            _ => bail!("unknown argument {word}"),
        }
    }
    Ok(stay)
}

fn play(stay: Stay) -> Result<ExitCode> {
    interrupt::note()?;
    let mut show = Show::new()?;
    let broken = show.play()?;
    if stay.stay {
        show.stay(stay.shell)?;
    }
    drop(show);
    if broken > 0 {
        println!("\n{broken} promises were broken.");
        return Ok(ExitCode::FAILURE);
    }
    println!("\nEvery promise held. Namespaces, cgroup, programs and tables are gone again.");
    Ok(ExitCode::SUCCESS)
}
