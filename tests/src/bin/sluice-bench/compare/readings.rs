//! What was measured. It travels as JSON from a virtual machine to the report.

use serde::{Deserialize, Serialize};

use crate::report::Samples;

/// One quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measure {
    /// New connections a second.
    Rate,
    /// Microseconds of a new connection.
    ConnectMedian,
    Connect99,
    Connect999,
    /// Microseconds of processors for a new connection.
    ConnectWork,
    /// Requests a second over 1 connection, and their microseconds.
    OneRate,
    OneMedian,
    One99,
    /// Requests a second over 1,000 connections, and their microseconds.
    ManyRate,
    ManyMedian,
    Many99,
    /// Gigabits a second over one connection.
    Throughput,
    /// Milliseconds of processors for a gigabyte.
    StreamWork,
    /// Percentage points between the share of the light backend and 5 %.
    Share5,
    /// The same for 0.1 %.
    Share01,
    /// Milliseconds from the command to the last new connection on the node.
    LastConnection,
    /// Milliseconds from the command to its end.
    Command,
    /// Milliseconds between two new connections on the node before the command: what the last one is exact to.
    Gap,
    /// Milliseconds until all services are there.
    Load,
    /// Bytes for a service.
    Memory,
    /// Requests without an answer, at a zero.
    LostAtZero,
    /// Requests without an answer, at a drain.
    LostAtDrain,
    /// Seconds from the command to the last answer from a node that is drained.
    Drained,
    /// What a client sees when nothing is left.
    NothingLeft,
    /// What a client with affinity sees when its backend is zeroed.
    Affinity,
    /// Why something could not be measured.
    Note,
}

/// One value of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reading {
    /// The candidate.
    pub who: String,
    pub measure: Measure,
    /// With this many services; 0 where it does not matter.
    pub services: u32,
    /// By what means, where there are several.
    pub way: String,
    pub value: Value,
}

/// A number or words.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Value {
    /// The median (or mean), the least and the greatest of so many samples.
    Number {
        median: f64,
        low: f64,
        high: f64,
        samples: usize,
    },
    Words(String),
}

/// Everything of one run on one machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Readings {
    /// Machine, kernel, versions, date.
    pub facts: Vec<(String, String)>,
    /// Candidates in the order of the report.
    pub who: Vec<String>,
    pub all: Vec<Reading>,
}

/// What a reading is of.
#[derive(Clone, Copy, Debug)]
pub struct Of<'a> {
    pub who: &'a str,
    pub services: u32,
    pub way: &'a str,
}

impl<'a> Of<'a> {
    /// Where neither services nor ways matter.
    pub fn plain(who: &'a str) -> Self {
        Self { who, services: 0, way: "" }
    }
}

impl Readings {
    /// One more number, unless there are no samples.
    pub fn number(&mut self, of: Of, measure: Measure, samples: &[f64]) {
        if samples.is_empty() {
            return;
        }
        let sorted: Samples = samples.iter().copied().collect();
        let [median, low, high] = [0.5, 0.0, 1.0].map(|share| sorted.quantile(share));
        println!("  {:14} {measure:?} {} {}: {median:.2} ({low:.2} .. {high:.2})", of.who, of.services, of.way);
        self.push(of, measure, Value::Number { median, low, high, samples: samples.len() });
    }

    /// One more number that is the mean of its samples.
    pub fn mean(&mut self, of: Of, measure: Measure, mean: f64, samples: &[f64]) {
        let sorted: Samples = samples.iter().copied().collect();
        let (low, high) = (sorted.quantile(0.0), sorted.quantile(1.0));
        println!("  {:14} {measure:?}: {mean:.3} ({low:.3} .. {high:.3})", of.who);
        self.push(of, measure, Value::Number { median: mean, low, high, samples: samples.len() });
    }

    /// Words.
    pub fn words(&mut self, of: Of, measure: Measure, words: impl Into<String>) {
        let words = words.into();
        println!("  {:14} {measure:?} {} {}: {words}", of.who, of.services, of.way);
        self.push(of, measure, Value::Words(words));
    }

    fn push(&mut self, of: Of, measure: Measure, value: Value) {
        let (who, way) = (of.who.to_owned(), of.way.to_owned());
        self.all.push(Reading { who, measure, services: of.services, way, value });
    }

    /// All readings of a quantity of one candidate.
    pub fn of(&self, who: &str, measure: Measure) -> impl Iterator<Item = &Reading> {
        self.all.iter().filter(move |reading| reading.who == who && reading.measure == measure)
    }

    /// The only, or first, value.
    pub fn first(&self, who: &str, measure: Measure) -> Option<&Value> {
        self.of(who, measure).next().map(|reading| &reading.value)
    }

    /// With this many services, by the candidate's usual means.
    pub fn with(&self, who: &str, measure: Measure, services: u32) -> Option<&Value> {
        self.of(who, measure).find(|reading| reading.services == services).map(|reading| &reading.value)
    }
}

impl Value {
    /// The median of a number.
    pub fn median(&self) -> Option<f64> {
        match self {
            Self::Number { median, .. } => Some(*median),
            Self::Words(_) => None,
        }
    }
}
