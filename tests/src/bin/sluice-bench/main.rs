//! What Sluice costs and how fast it is: measured against the same machine without it, in one run.
//!
//! `cargo xtask bench` builds and runs this. Nothing leaves the machine: every address is in network namespaces that
//! exist for the run.

mod axis;
mod bed;
mod bpf;
mod chart;
mod compare;
mod connect;
mod curves;
mod detect;
mod drain;
mod health;
mod hooks;
mod matrix;
mod page;
mod report;
mod scale;
mod worker;
mod zero;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::interrupt;

use report::Report;

/// Measures some things, and adds them to the report.
type Group = fn(Scale, &mut Report) -> Result<()>;

/// Every group of measurements, by the name that `--filter` looks for.
const GROUPS: [(&str, Group); 10] = [
    ("hooks", hooks::run),
    ("added", connect::added),
    ("ratios", connect::ratios),
    ("zero", zero::run),
    ("scale", scale::run),
    ("drain", drain::run),
    ("health", health::run),
    ("detect", detect::run),
    ("matrix", matrix::run),
    ("curves", curves::run),
];

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1).peekable();
    let role = arguments.next_if(|word| ["worker", "compare", "load", "node"].contains(&word.as_str()));
    let result = match role.as_deref() {
        Some("worker") => worker::main(arguments),
        Some("compare") => compare::main(arguments),
        Some("load") => compare::load::main(),
        Some("node") => compare::node::main(arguments),
        _ => Plan::parse(arguments).and_then(|plan| run(&plan)),
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
    /// Where pages for people go: beside the JSON file unless it is said.
    pages: Option<PathBuf>,
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
                "--pages" => plan.pages = Some(PathBuf::from(value()?)),
                _ => bail!("unknown argument {word}"),
            }
        }
        Ok(plan)
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Scale<'a> {
    quick: bool,
    /// What follows the name of a group and a slash in the filter: a part of the group.
    pub part: Option<&'a str>,
    /// Directory for pages that people read.
    pub pages: &'a Path,
}

impl Scale<'_> {
    /// Whether this part of a group is wanted.
    pub fn wants(self, part: &str) -> bool {
        self.part.is_none_or(|wanted| part.contains(wanted))
    }

    /// This many rounds, or a few.
    pub fn of(self, rounds: u32) -> u32 {
        if self.quick { rounds.div_ceil(4) } else { rounds }
    }
}

fn run(plan: &Plan) -> Result<()> {
    interrupt::note()?;
    let start = Instant::now();
    let mut report = Report::new();
    let (filter, part) = match plan.filter.as_deref().map(|filter| filter.split_once('/').ok_or(filter)) {
        None => (None, None),
        Some(Err(group)) => (Some(group), None),
        Some(Ok((group, part))) => (Some(group), Some(part)),
    };
    let wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter));
    let groups: Vec<_> = GROUPS.into_iter().filter(|(name, _)| wanted(name)).collect();
    ensure!(!groups.is_empty(), "no group has this in its name; there are {}", GROUPS.map(|(name, _)| name).join(", "));
    let beside = plan.json.parent().unwrap_or(Path::new("."));
    let scale = Scale { quick: plan.quick, part, pages: plan.pages.as_deref().unwrap_or(beside) };
    for (name, measure) in groups {
        measure(scale, &mut report).with_context(|| format!("measuring {name}"))?;
    }
    report.finish(&plan.json, start.elapsed(), plan.quick)
}
