//! What Sluice costs and how fast it is: measured against the same machine without it, in one run.
//!
//! `cargo xtask bench` builds and runs this. Nothing leaves the machine: every address is on the loopback device of a
//! network namespace that exists for the run.

mod bed;
mod bpf;
mod hooks;
mod report;
mod worker;

use std::{env, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context, Result, bail};
use sluice_tests::interrupt;

use bed::Bed;
use report::Report;

/// How many services the tables hold where nothing else is said.
const SERVICES: u32 = 1000;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).peekable();
    let result = if arguments.next_if(|word| word == "worker").is_some() {
        worker::main(arguments)
    } else {
        Plan::parse(arguments).and_then(|plan| run(&plan))
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What to measure.
#[derive(Debug, Default)]
struct Plan {
    filter: Option<String>,
    quick: bool,
    json: PathBuf,
}

impl Plan {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self { json: PathBuf::from("bench.json"), ..Self::default() };
        while let Some(word) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{word} needs a value"));
            match word.as_str() {
                "--filter" => plan.filter = Some(value()?),
                "--quick" => plan.quick = true,
                "--json" => plan.json = PathBuf::from(value()?),
                _ => bail!("unknown argument {word}"),
            }
        }
        Ok(plan)
    }

    fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|filter| name.contains(filter.as_str()))
    }
}

fn run(plan: &Plan) -> Result<()> {
    interrupt::note()?;
    let start = Instant::now();
    let mut report = Report::new();
    if plan.wants("hooks") {
        let mut bed = Bed::new(SERVICES, 4)?;
        hooks::run(&mut bed, SERVICES, plan.quick, &mut report)?;
    }
    report.finish(&plan.json, start.elapsed(), plan.quick)
}
