//! Sluice side by side with what users would pick instead, on one machine in one run.
//!
//! Each candidate steers the clients of a host of its own; all hosts share a switch and three nodes with backends. In each
//! round every candidate has its turn, in another order each time.

mod candidates;
pub mod load;
mod machine;
mod measures;
pub mod node;
mod process;
mod proxy;
mod readings;
mod setup;
mod topology;
mod write;

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::interrupt;

use candidates::{CANDIDATES, Candidate};
use readings::Readings;
use setup::{PLAIN, SLOW, STREAM, Service, WEB};
use topology::Network;

/// Begins the line that carries a virtual machine's readings to the host.
const DATA: &str = "sluice-vm: data ";

/// What is measured, by the name that `--filter` looks for.
type Measurement = fn(&mut Run) -> Result<()>;
const MEASUREMENTS: [(&str, Measurement); 6] = [
    ("connections", measures::connections::run),
    ("established", measures::established::run),
    ("exactness", measures::exactness::run),
    ("zero", measures::zero::run),
    ("loss", measures::loss::run),
    ("behaviour", measures::behaviour::run),
];

/// Everything that measurements share.
pub struct Run {
    network: Network,
    candidates: Vec<Box<dyn Candidate>>,
    readings: Readings,
    quick: bool,
    /// On an emulated processor: fewer and smaller measurements.
    emulated: bool,
}

/// The words after `compare`.
#[derive(Debug, Default)]
struct Plan {
    only: Option<String>,
    filter: Option<String>,
    quick: bool,
    emulated: bool,
    json: Option<PathBuf>,
}

/// Measures, or writes the report of what was measured.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut plan = Plan::default();
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "write" => return write::main(arguments),
            "--only" => plan.only = Some(value()?),
            "--filter" => plan.filter = Some(value()?),
            "--quick" => plan.quick = true,
            "--emulated" => plan.emulated = true,
            "--json" => plan.json = Some(value()?.into()),
            _ => bail!("unknown argument {word}"),
        }
    }
    run(&plan)
}

fn run(plan: &Plan) -> Result<()> {
    interrupt::note()?;
    let start = Instant::now();
    let filter = |name: &str| plan.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let only = |name: &str| plan.only.as_deref().is_none_or(|only| only.split(',').any(|word| word == name));
    let names = MEASUREMENTS.map(|(name, _)| name).join(", ");
    ensure!(MEASUREMENTS.iter().any(|(name, _)| filter(name)), "no measurement has this in its name: {names}");
    let network = Network::new(!plan.emulated)?;
    let (mut candidates, mut readings) = (Vec::new(), Readings::default());
    for (number, (name, make)) in CANDIDATES.into_iter().enumerate().filter(|(_, (name, _))| only(name)) {
        // Hosts are numbered even where one cannot be made.
        match make(&network, number) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => println!("left out: {name}: {error:#}"),
        }
    }
    readings.who = candidates.iter().map(|candidate| candidate.name().to_owned()).collect();
    readings.facts = measures::facts(&candidates);
    let mut run = Run { network, candidates, readings, quick: plan.quick, emulated: plan.emulated };
    for (name, measure) in MEASUREMENTS.into_iter().filter(|(name, _)| filter(name)) {
        println!("\n[{:4.0} s] {name}", start.elapsed().as_secs_f64());
        measure(&mut run).with_context(|| format!("measuring {name}"))?;
    }
    println!("\n[{:4.0} s] measured", start.elapsed().as_secs_f64());
    let text = serde_json::to_string(&run.readings).context("writing down readings")?;
    match &plan.json {
        Some(file) => fs::write(file, text).with_context(|| format!("writing {}", file.display())),
        None => {
            println!("{DATA}{text}");
            Ok(())
        }
    }
}

impl Run {
    /// This many rounds, or a few.
    fn rounds(&self, rounds: usize) -> usize {
        if self.quick || self.emulated { rounds.div_ceil(3) } else { rounds }
    }

    /// Candidates by number in the order of a round: each round begins with the next.
    fn order(&self, round: usize) -> impl Iterator<Item = usize> + use<> {
        let number = self.candidates.len();
        (0..number).map(move |place| (place + round) % number)
    }

    /// Everybody holds the services of the measurements on few services.
    fn load_few(&mut self) -> Result<()> {
        for candidate in &mut self.candidates {
            interrupt::check()?;
            candidate.load(&few()).with_context(|| format!("setting up {}", candidate.name()))?;
        }
        Ok(())
    }
}

/// One service of each kind.
fn few() -> [Service; 4] {
    [plain(), web(), stream(), slow()]
}

fn plain() -> Service {
    Service::even(0, PLAIN)
}

fn web() -> Service {
    Service::even(1, WEB)
}

/// On one node: both connections of iperf3 must go there.
fn stream() -> Service {
    Service::weighted(2, STREAM, &[1])
}

fn slow() -> Service {
    Service::even(3, SLOW)
}
