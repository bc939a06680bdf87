//! A report for people: a Markdown file with a table for each section.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// A report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page {
    pub title: String,
    /// In Markdown.
    pub intro: String,
    /// Machine, kernel, versions, date, command: names and values.
    pub facts: Vec<(String, String)>,
    pub sections: Vec<Section>,
}

/// What belongs together on a page.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Section {
    pub title: String,
    /// In Markdown.
    pub text: String,
    /// The first names the rows.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub charts: Vec<Chart>,
}

/// A plot.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Chart {
    Bars { title: String, unit: String, log: bool, bars: Vec<Bar> },
    Lines { title: String, x: String, y: String, lines: Vec<Line> },
}

/// A value and how far its samples reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bar {
    pub label: String,
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// Points of one kind, from left to right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

impl Page {
    /// Writes `NAME.md` into a directory, which is made where it is missing.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        let mut text = format!("# {}\n\n{}\n\n| | |\n|---|---|\n", self.title, self.intro);
        for (name, value) in &self.facts {
            text += &format!("| {name} | {value} |\n");
        }
        for section in &self.sections {
            text += &format!("\n## {}\n\n{}\n\n", section.title, section.text);
            text += &format!("| {} |\n|{}\n", section.columns.join(" | "), "---|".repeat(section.columns.len()));
            for row in &section.rows {
                text += &format!("| {} |\n", row.join(" | "));
            }
        }
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let file = directory.join(format!("{name}.md"));
        fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
    }
}
