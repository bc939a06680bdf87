//! Sluice side by side with what users would pick instead, on one machine in one run.
//!
//! Each candidate steers the clients of a host of its own; all hosts share a switch and three nodes with backends. In each
//! round every candidate has its turn, in another order each time. Who fails is left out of that measurement, with a note.

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

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sluice_tests::interrupt;

use candidates::{CANDIDATES, Candidate};
use readings::Readings;
use setup::{PLAIN, SLOW, STREAM, Service, WEB};
use topology::Network;

/// Begins the line that carries a virtual machine's readings to the host.
const DATA: &str = "sluice-vm: data ";

/// What is measured, by the name that `--filter` looks for, and after how many seconds no further round begins: here, and on
/// an emulated processor.
type Measurement = fn(&mut Run) -> Result<()>;
const MEASUREMENTS: [(&str, Measurement, [u64; 2]); 6] = [
    ("connections", measures::connections::run, [110, 60]),
    ("established", measures::established::run, [190, 0]),
    ("exactness", measures::exactness::run, [45, 60]),
    ("zero", measures::zero::run, [420, 130]),
    ("loss", measures::loss::run, [140, 40]),
    ("behaviour", measures::behaviour::run, [40, 40]),
];

/// Everything that measurements share.
pub struct Run {
    network: Network,
    candidates: Vec<Box<dyn Candidate>>,
    readings: Readings,
    quick: bool,
    /// On an emulated processor: fewer and smaller measurements.
    emulated: bool,
    /// What is measured now.
    measurement: &'static str,
    /// No further round begins after that.
    until: Instant,
    /// Candidates by number that take no part any more in this measurement.
    out: Vec<usize>,
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
    let names = MEASUREMENTS.map(|(name, ..)| name).join(", ");
    ensure!(MEASUREMENTS.iter().any(|(name, ..)| filter(name)), "no measurement has this in its name: {names}");
    let network = Network::new(!plan.emulated)?;
    let (mut candidates, mut readings) = (Vec::new(), Readings::default());
    for (number, (name, make)) in CANDIDATES.into_iter().enumerate().filter(|(_, (name, _))| only(name)) {
        // Hosts are numbered even where one cannot be made.
        match make(&network, number) {
            Ok(candidate) => candidates.push(candidate),
            Err(error) => {
                println!("left out: {name}: {error:#}");
                readings.note(name, "all", 0, format!("could not be set up: {error:#}"));
            }
        }
    }
    readings.who = candidates.iter().map(|candidate| candidate.name().to_owned()).collect();
    readings.facts = measures::facts(&candidates);
    let (quick, emulated) = (plan.quick, plan.emulated);
    let mut run =
        Run { network, candidates, readings, quick, emulated, measurement: "", until: start, out: Vec::new() };
    for (name, measure, [here, there]) in MEASUREMENTS.into_iter().filter(|(name, ..)| filter(name)) {
        println!("\n[{:4.0} s] {name}", start.elapsed().as_secs_f64());
        run.measurement = name;
        run.until = Instant::now() + Duration::from_secs(if emulated { there } else { here });
        run.out.clear();
        if let Err(error) = measure(&mut run) {
            // A wish to stop, or what concerns everybody.
            interrupt::check()?;
            run.readings.note(EVERYBODY, name, 0, format!("{error:#}"));
        }
        run.save(plan)?;
    }
    println!("\n[{:4.0} s] measured", start.elapsed().as_secs_f64());
    Ok(())
}

/// Whom a note concerns that concerns no single candidate.
const EVERYBODY: &str = "everybody";

impl Run {
    /// This many rounds, or a few.
    fn rounds(&self, rounds: usize) -> usize {
        match (self.quick, self.emulated) {
            (true, _) => rounds.div_ceil(3),
            (false, true) => rounds.div_ceil(3).max(3).min(rounds),
            (false, false) => rounds,
        }
    }

    /// Candidates by number in the order of a round: the rows of a Williams square, in which everybody follows everybody
    /// else equally often, as far as there are rounds for it. Who is out is not among them.
    fn order(&self, round: usize) -> Vec<usize> {
        let number = self.candidates.len();
        // 0, 1, n - 1, 2, n - 2 and so on, turned by the round.
        let zigzag = (0..number).map(|place| if place % 2 == 1 { place.div_ceil(2) } else { number - place / 2 });
        let mut order: Vec<usize> = zigzag.map(|at| (at + round) % number).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        order.retain(|at| !self.out.contains(at));
        order
    }

    /// The same without who steers nothing.
    fn steering(&self, round: usize) -> Vec<usize> {
        let mut order = self.order(round);
        order.retain(|at| !self.candidates[*at].ways().is_empty());
        order
    }

    /// A candidate takes no part any more in this measurement, unless all is well or the bench is to stop.
    fn judge<T>(&mut self, at: usize, services: u32, done: Result<T>) -> Result<Option<T>> {
        interrupt::check()?;
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) => {
                let name = self.candidates[at].name();
                self.readings.note(name, self.measurement, services, format!("left out: {error:#}"));
                self.out.push(at);
                Ok(None)
            }
        }
    }

    /// Whether there is no time for this round, and notes it. Each candidate has the same rounds.
    fn is_late(&mut self, round: usize) -> bool {
        let is_late = Instant::now() > self.until;
        if is_late {
            let words = format!("no time for round {round} and later ones");
            self.readings.note(EVERYBODY, self.measurement, 0, words);
        }
        is_late
    }

    /// Everybody holds the services of the measurements on few services.
    fn load_few(&mut self) -> Result<()> {
        for at in self.order(0) {
            let loaded = self.candidates[at].load(&few()).context("setting up");
            self.judge(at, 0, loaded)?;
        }
        Ok(())
    }

    /// Writes down what there is so far. On a virtual machine's console the last line counts.
    fn save(&self, plan: &Plan) -> Result<()> {
        let text = serde_json::to_string(&self.readings).context("writing down readings")?;
        match &plan.json {
            Some(file) => fs::write(file, text).with_context(|| format!("writing {}", file.display())),
            None => {
                println!("{DATA}{text}");
                Ok(())
            }
        }
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
