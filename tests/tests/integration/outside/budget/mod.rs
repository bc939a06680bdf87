//! What the programs cost in instructions and look-ups, against what was recorded: no clock is needed to see that one grew.
//!
//! Most of it is read from the object inside the agent, which is the same on every kernel. The compiler has a say in it:
//! after a change of compilers, record anew.

mod code;
mod object;
mod walk;

use std::{collections::BTreeMap, fmt::Write, fs, path::Path};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sluice_tests::{Agent, World, agent, pins};

use self::{code::Cost, walk::Reach};

/// Set to anything, the table is written instead of compared.
const RECORD: &str = "SLUICE_RECORD_BUDGET";
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/integration/outside/budget/recorded.json");
const RECORDED: &str = include_str!("recorded.json");

/// What is below this share of its record asks for a new one.
const SHRUNK: f64 = 0.95;
/// Another kernel's verifier takes other ways: at most this many times the recorded number.
const OTHER_KERNEL: u64 = 2;

/// Ways through a program: its name, what they are called, and the tables that have nothing there. All others do.
const PATHS: [(&str, &str, &[&str]); 12] = [
    ("connect4", "steered", &[]),
    ("connect4", "not a frontend", &["FRONTENDS", "CONNECTIONS"]),
    ("connect6", "steered", &[]),
    ("connect6", "not a frontend", &["FRONTENDS", "CONNECTIONS"]),
    ("sendmsg4", "steered", &[]),
    ("sendmsg4", "not a frontend", &["FRONTENDS", "FLOWS", "CONNECTIONS"]),
    ("recvmsg4", "unsteered", &["FLOWS", "CONNECTIONS"]),
    ("getpeername4", "unsteered", &["FLOWS", "CONNECTIONS"]),
    ("sock_ops", "steered", &[]),
    ("sock_ops", "unsteered", &["CONNECTIONS"]),
    ("sock_release", "steered", &[]),
    ("sock_release", "unsteered", &["CONNECTIONS"]),
];

#[derive(Debug, Default, Serialize, Deserialize)]
struct Budget {
    /// By program; the functions that several of them call are together under `.text`.
    programs: BTreeMap<String, Cost>,
    /// Look-ups by program and way.
    paths: BTreeMap<String, Reach>,
    /// Major and minor number of the kernel whose verifier counted.
    kernel: String,
    /// Instructions that the verifier looked at, by attached program.
    verified: BTreeMap<String, u64>,
}

impl Budget {
    fn of_this_build() -> Result<Self> {
        let agent = agent::program()?;
        let binary = fs::read(&agent).with_context(|| format!("reading {}", agent.display()))?;
        let functions = object::functions(&binary)?;
        let mut budget = Self { kernel: kernel()?, ..Self::default() };
        for function in &functions {
            budget.programs.entry(function.program.clone()).or_default().add(&function.code.cost());
        }
        for (program, way, misses) in PATHS {
            let function = functions.iter().find(|function| function.program == program);
            let code = &function.with_context(|| format!("the object has no program {program}"))?.code;
            let reach = walk::reach(code, misses).with_context(|| format!("{program} has no end, {way}"))?;
            budget.paths.insert(format!("{program}, {way}"), reach);
        }
        Ok(budget)
    }

    fn verify(&mut self, agent: &Agent) -> Result<()> {
        for name in pins::names(agent.bpffs()) {
            if let Some(program) = name.strip_prefix("links/") {
                self.verified.insert(program.to_owned(), pins::verified(&agent.bpffs().join(&name))?);
            }
        }
        Ok(())
    }

    /// Every number by what it counts.
    fn numbers(&self) -> BTreeMap<String, u64> {
        let costs = self.programs.iter().flat_map(|(name, cost)| {
            let parts = [("instructions", cost.instructions), ("look-ups", cost.lookups)];
            let more = [("looks for socket storage", cost.storage), ("other calls", cost.others)];
            parts.into_iter().chain(more).map(move |(what, number)| (format!("{what} of {name}"), number))
        });
        let paths = self.paths.iter().flat_map(|(name, reach)| {
            [("fewest", reach.fewest), ("most", reach.most)]
                .map(|(what, number)| (format!("{what} look-ups of {name}"), number))
        });
        costs.chain(paths).collect()
    }

    /// A line for each entry, so that a change shows what grew.
    fn text(&self) -> Result<String> {
        let mut text = String::from("{\n");
        for (name, part) in [("programs", lines(&self.programs)?), ("paths", lines(&self.paths)?)] {
            write!(text, "  \"{name}\": {{\n{part}\n  }},\n")?;
        }
        write!(text, "  \"kernel\": \"{}\",\n  \"verified\": {{\n{}\n  }}\n}}\n", self.kernel, lines(&self.verified)?)?;
        Ok(text)
    }
}

fn lines<T: Serialize>(entries: &BTreeMap<String, T>) -> Result<String> {
    let line = |(name, entry)| Ok(format!("    \"{name}\": {}", serde_json::to_string(entry)?));
    Ok(entries.iter().map(line).collect::<Result<Vec<_>>>()?.join(",\n"))
}

fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's version")?;
    Ok(release.split('.').take(2).collect::<Vec<_>>().join("."))
}

/// What is not as recorded, in words.
fn differences(recorded: &Budget, now: &Budget) -> Vec<String> {
    let (before, after) = (recorded.numbers(), now.numbers());
    let names = before.keys().chain(after.keys().filter(|name| !before.contains_key(*name)));
    let mut words: Vec<String> = names
        .filter_map(|name| match (before.get(name), after.get(name)) {
            (Some(old), Some(new)) if new > old => Some(format!("{name} grew from {old} to {new}")),
            (Some(old), Some(new)) if (*new as f64) < *old as f64 * SHRUNK => {
                Some(format!("{name} shrank from {old} to {new}"))
            }
            (None, Some(new)) => Some(format!("{name} has no record and is {new}")),
            (Some(old), None) => Some(format!("{name} was {old} and is no more")),
            (Some(_), Some(_)) | (None, None) => None,
        })
        .collect();
    let factor = if recorded.kernel == now.kernel { 1 } else { OTHER_KERNEL };
    for (name, new) in &now.verified {
        match recorded.verified.get(name) {
            Some(old) if *new > old * factor => {
                words.push(format!("instructions that the verifier looks at in {name} grew from {old} to {new}"));
            }
            Some(_) => {}
            None => words.push(format!("instructions that the verifier looks at in {name} have no record: {new}")),
        }
    }
    words
}

#[test]
fn programs_cost_what_is_recorded() -> Result<()> {
    let mut now = Budget::of_this_build()?;
    let world = World::new("budget")?;
    let mut agent = Agent::new(world.cgroup.path())?;
    agent.start()?;
    now.verify(&agent)?;
    if std::env::var_os(RECORD).is_some() {
        return fs::write(Path::new(FILE), now.text()?).with_context(|| format!("writing {FILE}"));
    }
    let recorded = serde_json::from_str(RECORDED).context("reading what is recorded")?;
    let words = differences(&recorded, &now);
    if !words.is_empty() {
        bail!(
            "{}\nIf this is meant, or the compiler has changed, record it: {RECORD}=1 cargo xtask test --host --filter budget",
            words.join("\n")
        );
    }
    Ok(())
}

#[test]
fn growth_and_much_less_are_told() {
    let budget = |instructions, verified| {
        let cost = Cost { instructions, ..Cost::default() };
        Budget {
            programs: [("connect4".to_owned(), cost)].into(),
            kernel: "6.18".to_owned(),
            verified: [("connect4".to_owned(), verified)].into(),
            ..Budget::default()
        }
    };
    let recorded = budget(100, 1000);
    assert!(differences(&recorded, &budget(96, 900)).is_empty());
    assert_eq!(differences(&recorded, &budget(101, 1000)), ["instructions of connect4 grew from 100 to 101"]);
    assert_eq!(differences(&recorded, &budget(90, 1000)), ["instructions of connect4 shrank from 100 to 90"]);
    assert_eq!(differences(&recorded, &budget(100, 1001)).len(), 1);
    let elsewhere = Budget { kernel: "6.12".to_owned(), ..budget(100, 1999) };
    assert!(differences(&recorded, &elsewhere).is_empty());
}
