//! What was measured. It travels as JSON from a virtual machine to the report.

use serde::{Deserialize, Serialize};

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
    /// Milliseconds of the longest pause between two new connections on the node before the command: what the last one is
    /// exact to.
    Gap,
    /// Milliseconds until all services are there, with the start of the process.
    Load,
    /// The same into a process that runs.
    LoadRunning,
    /// Bytes in all, divided by the services.
    Memory,
    /// Bytes that each further service adds.
    MemoryGrowth,
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
    /// Why something could not be measured; the way is the measurement.
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
    /// The median (or mean), the least and the greatest of the samples, which are in the order of their rounds. None: a
    /// sample that is no number.
    Number {
        median: f64,
        low: f64,
        high: f64,
        samples: Vec<Option<f64>>,
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
    /// One more number, unless there are no samples. Those that are no numbers do not count.
    pub fn number(&mut self, of: Of, measure: Measure, samples: &[f64]) {
        if let Some(value) = Value::number(samples, median) {
            println!("  {:14} {measure:?} {} {}: {}", of.who, of.services, of.way, value.line());
            self.push(of, measure, value);
        }
    }

    /// One more number that is the mean of its samples.
    pub fn mean(&mut self, of: Of, measure: Measure, samples: &[f64]) {
        if let Some(value) = Value::number(samples, mean) {
            println!("  {:14} {measure:?}: {}", of.who, value.line());
            self.push(of, measure, value);
        }
    }

    /// Why something is missing.
    pub fn note(&mut self, who: &str, measurement: &str, services: u32, words: impl Into<String>) {
        self.words(Of { who, services, way: measurement }, Measure::Note, words);
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
    /// The samples in the middle, by `middle`; None: no sample is a number.
    pub fn number(samples: &[f64], middle: fn(&[f64]) -> f64) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.iter().copied().filter(|sample| sample.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let samples = samples.iter().map(|sample| sample.is_finite().then_some(*sample)).collect();
        Some(Self::Number { median: middle(&sorted), low, high, samples })
    }

    /// Sample by sample over those of another one: what was measured in the same round.
    pub fn over(&self, other: &Self) -> Option<Self> {
        let (Self::Number { samples, .. }, Self::Number { samples: others, .. }) = (self, other) else { return None };
        let ratio = |(sample, other): (&Option<f64>, &Option<f64>)| Some((*sample)? / (*other)?);
        let ratios: Vec<f64> = samples.iter().zip(others).filter_map(ratio).collect();
        Self::number(&ratios, median)
    }

    /// The median of a number.
    pub fn median(&self) -> Option<f64> {
        match self {
            Self::Number { median, .. } => Some(*median),
            Self::Words(_) => None,
        }
    }

    /// The greatest sample of a number.
    pub fn greatest(&self) -> Option<f64> {
        match self {
            Self::Number { high, .. } => Some(*high),
            Self::Words(_) => None,
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Number { median, low, high, .. } => format!("{median:.3} ({low:.3} .. {high:.3})"),
            Self::Words(words) => words.clone(),
        }
    }
}

/// The median of sorted samples, of which there is one at least. Of an even number it is the mean of the two in the middle.
pub fn median(sorted: &[f64]) -> f64 {
    let (left, right) = ((sorted.len() - 1) / 2, sorted.len() / 2);
    f64::midpoint(sorted[left], sorted[right])
}

fn mean(samples: &[f64]) -> f64 {
    samples.iter().sum::<f64>() / samples.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_number_is_between_two() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
    }

    #[test]
    fn rounds_are_divided_in_pairs() {
        let of = |samples: &[f64]| Value::number(samples, median).unwrap();
        let over = of(&[10.0, f64::NAN, 30.0]).over(&of(&[10.0, 5.0, 20.0])).unwrap();
        assert_eq!(over.line(), "1.250 (1.000 .. 1.500)");
        assert!(Value::number(&[f64::NAN], median).is_none());
    }
}
