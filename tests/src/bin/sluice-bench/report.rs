//! What was measured, as a table for people and as JSON for programs.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// How a figure is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Unit {
    Nanoseconds,
    Microseconds,
    Milliseconds,
    PerSecond,
    BytesPerSecond,
    Mebibytes,
    Ratio,
    Count,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// A ratio of 1, as far as the noise of the run lets one see: 1 is between the first and the last decile.
    Same,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Figure {
    group: &'static str,
    name: String,
    value: f64,
    unit: Unit,
    /// First and last decile of the samples of which the value is the median.
    #[serde(skip_serializing_if = "Option::is_none")]
    spread: Option<(f64, f64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    met: Option<bool>,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl Figure {
    /// A single reading.
    pub fn new(group: &'static str, name: impl Into<String>, value: f64, unit: Unit) -> Self {
        Self { group, name: name.into(), value, unit, spread: None, target: None, met: None, note: String::new() }
    }

    /// The median of samples.
    pub fn median(group: &'static str, name: impl Into<String>, samples: &Samples, unit: Unit) -> Self {
        let spread = Some((samples.quantile(0.1), samples.quantile(0.9)));
        Self { spread, ..Self::new(group, name, samples.quantile(0.5), unit) }
    }

    /// What it should be.
    pub fn target(self, target: Target) -> Self {
        let met = match target {
            Target::AtMost(limit) => self.value <= limit,
            Target::AtLeast(limit) => self.value >= limit,
            Target::Same => self.spread.is_some_and(|(low, high)| low <= 1.0 && 1.0 <= high),
        };
        Self { target: Some(target), met: Some(met), ..self }
    }

    /// What a reader should know.
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }
}

/// Readings of one quantity.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    values: Vec<f64>,
}

impl Samples {
    /// One more.
    pub fn push(&mut self, value: f64) {
        let at = self.values.partition_point(|held| *held < value);
        self.values.insert(at, value);
    }

    /// The value that this share of the readings does not exceed; not a number without readings.
    pub fn quantile(&self, share: f64) -> f64 {
        let rank = (share * (self.values.len() as f64 - 1.0)).round().max(0.0) as usize;
        self.values.get(rank).copied().unwrap_or(f64::NAN)
    }
}

impl FromIterator<f64> for Samples {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        Self { values }
    }
}

/// All figures of a run.
#[derive(Debug)]
pub struct Report {
    figures: Vec<Figure>,
    /// By name, what is no figure.
    attached: BTreeMap<&'static str, Value>,
    load_before: String,
}

impl Report {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self { figures: Vec::new(), attached: BTreeMap::new(), load_before: load() }
    }

    /// Takes a figure and shows it.
    pub fn add(&mut self, figure: Figure) {
        if self.figures.last().is_none_or(|last| last.group != figure.group) {
            println!("\n{}", figure.group);
        }
        println!("{}", line(&figure));
        self.figures.push(figure);
    }

    /// Takes what only the JSON file has.
    pub fn attach(&mut self, name: &'static str, value: Value) {
        self.attached.insert(name, value);
    }

    /// Says what was met and what was missed, and on what machine.
    pub fn finish(&self, file: &Path, took: Duration, quick: bool) -> Result<()> {
        let judged = self.figures.iter().filter_map(|figure| figure.met);
        let (met, missed): (Vec<bool>, Vec<bool>) = judged.partition(|met| *met);
        println!("\nLinux {}, {}, {} processors", kernel(), processor(), processors());
        println!("load average before {}, after {}; {:.0} s", self.load_before, load(), took.as_secs_f64());
        println!("{} targets met, {} missed", met.len(), missed.len());
        for figure in self.figures.iter().filter(|figure| figure.met == Some(false)) {
            println!("missed: {}", line(figure).trim());
        }
        let value = json!({
            "kernel": kernel(),
            "processor": processor(),
            "processors": processors(),
            "loadBefore": self.load_before,
            "loadAfter": load(),
            "seconds": took.as_secs_f64(),
            "quick": quick,
            "figures": self.figures,
            "attached": self.attached,
        });
        if let Some(directory) = file.parent() {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        fs::write(file, format!("{value:#}\n")).with_context(|| format!("writing {}", file.display()))?;
        println!("{}", file.display());
        Ok(())
    }
}

fn line(figure: &Figure) -> String {
    let value = shown(figure.value, figure.unit);
    let spread =
        figure.spread.map(|(low, high)| format!("{} .. {}", shown(low, figure.unit), shown(high, figure.unit)));
    let target = match (figure.target, figure.met) {
        (Some(Target::AtMost(limit)), Some(met)) => format!("<= {}  {}", shown(limit, figure.unit), verdict(met)),
        (Some(Target::AtLeast(limit)), Some(met)) => format!(">= {}  {}", shown(limit, figure.unit), verdict(met)),
        (Some(Target::Same), Some(met)) => format!("1 within noise  {}", verdict(met)),
        (_, None) | (None, _) => String::new(),
    };
    let spread = spread.unwrap_or_default();
    let text = format!("  {:58} {value:>11}  {spread:24} {target:22} {}", figure.name, figure.note);
    text.trim_end().to_owned()
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// A value as tables have it.
pub fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Nanoseconds if value.abs() >= 9_999.5 => format!("{:.1} us", value / 1e3),
        Unit::Nanoseconds => format!("{value:.0} ns"),
        Unit::Microseconds if value.abs() >= 9_999.5 => format!("{:.1} ms", value / 1e3),
        Unit::Microseconds => format!("{value:.0} us"),
        Unit::Milliseconds => format!("{value:.1} ms"),
        Unit::PerSecond => format!("{value:.0} /s"),
        Unit::BytesPerSecond => format!("{:.2} GB/s", value / 1e9),
        Unit::Mebibytes => format!("{value:.1} MiB"),
        Unit::Ratio => format!("{value:.3}"),
        Unit::Count => format!("{value:.0}"),
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// The commit that is measured, "-dirty" when files differ. None where there is no repository, as in a virtual machine.
pub fn commit() -> Option<String> {
    let words = ["-C", env!("CARGO_MANIFEST_DIR"), "describe", "--always", "--dirty", "--exclude", "*"];
    let output = Command::new("git").args(words).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The release of the kernel that runs.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// The name of the processor.
pub fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    name.map_or("unknown processor", |(_, name)| name).to_owned()
}

/// How many processors there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_hundred() {
        let samples: Samples = (0..=100).rev().map(f64::from).collect();
        assert_eq!((samples.quantile(0.0), samples.quantile(0.5), samples.quantile(0.99)), (0.0, 50.0, 99.0));
    }

    #[test]
    fn a_target_is_met_or_missed() {
        let figure = |value| Figure::new("", "", value, Unit::Ratio);
        assert_eq!(figure(0.95).target(Target::AtLeast(0.93)).met, Some(true));
        assert_eq!(figure(0.95).target(Target::AtMost(0.93)).met, Some(false));
    }
}
