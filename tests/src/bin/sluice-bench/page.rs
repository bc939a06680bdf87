//! A report for people: a Markdown file with a table and plots for each section, readable where the repository is shown.

use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer, Serialize};

use crate::chart;

/// A report: a Markdown file with a table and a plot for each section.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page {
    pub title: String,
    /// What was measured and how, in Markdown.
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
    /// Values side by side. Bars whose label begins with the product's name stand out.
    Bars { title: String, unit: String, log: bool, bars: Vec<Bar> },
    /// Both axes are logarithmic: points that are not above zero are left out.
    Lines { title: String, x: String, y: String, lines: Vec<Line> },
}

/// A value and how far its samples reach.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bar {
    pub label: String,
    /// Not a number: there is no value.
    #[serde(deserialize_with = "number")]
    pub value: f64,
    #[serde(deserialize_with = "number")]
    pub low: f64,
    #[serde(deserialize_with = "number")]
    pub high: f64,
}

/// Points of one kind, from left to right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
}

impl Page {
    /// Writes `NAME.md` and, for each plot, `NAME-1.svg` and so on into a directory, which is made where it is missing.
    ///
    /// # Errors
    /// The directory or a file cannot be written.
    pub fn write(&self, directory: &Path, name: &str) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        let charts = self.sections.iter().flat_map(|section| &section.charts);
        for (number, chart) in charts.enumerate() {
            let file = directory.join(image(name, number));
            save(&file, &chart::svg(chart).with_context(|| format!("drawing {}", file.display()))?)?;
        }
        save(&directory.join(format!("{name}.md")), &self.markdown(name))
    }

    fn markdown(&self, name: &str) -> String {
        let mut text = format!("# {}\n\n", self.title);
        paragraph(&mut text, &self.intro);
        for (name, value) in &self.facts {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "- {name}: {value}");
        }
        let mut number = 0;
        for section in &self.sections {
            let _ = write!(text, "\n## {}\n\n", section.title);
            paragraph(&mut text, &section.text);
            table(&mut text, &section.columns, &section.rows);
            for chart in &section.charts {
                let _ = writeln!(text, "\n![{}]({})", chart.title(), image(name, number));
                number += 1;
            }
        }
        text
    }
}

impl Chart {
    fn title(&self) -> &str {
        match self {
            Self::Bars { title, .. } | Self::Lines { title, .. } => title,
        }
    }
}

fn image(name: &str, number: usize) -> String {
    format!("{name}-{}.svg", number + 1)
}

fn save(file: &PathBuf, text: &str) -> Result<()> {
    fs::write(file, text).with_context(|| format!("writing {}", file.display()))
}

fn paragraph(text: &mut String, words: &str) {
    if !words.trim().is_empty() {
        let _ = write!(text, "{}\n\n", words.trim());
    }
}

/// Nothing without columns. Every row gets as many cells as there are columns.
fn table(text: &mut String, columns: &[String], rows: &[Vec<String>]) {
    if columns.is_empty() {
        return;
    }
    row(text, columns.iter().map(|cell| escaped(cell)));
    row(text, (0..columns.len()).map(|column| if column == 0 { "---" } else { "--:" }.to_owned()));
    for cells in rows {
        row(text, (0..columns.len()).map(|column| cells.get(column).map(|cell| escaped(cell)).unwrap_or_default()));
    }
}

fn row(text: &mut String, cells: impl Iterator<Item = String>) {
    let _ = writeln!(text, "| {} |", cells.collect::<Vec<_>>().join(" | "));
}

/// What would end a cell or a row.
fn escaped(cell: &str) -> String {
    cell.replace('|', "\\|").replace('\n', " ")
}

/// JSON has no word for what is not a number, and it is written as null.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page() -> Page {
        let bar = |label: &str, value| Bar { label: label.to_owned(), value, low: value * 0.5, high: value * 2.0 };
        let bars = vec![bar("Sluice", 12.0), bar("none", f64::NAN)];
        let lines = vec![Line { label: "one".to_owned(), points: vec![(1.0, 2.0), (10.0, 3.0)] }];
        let charts = vec![
            Chart::Bars { title: "a".to_owned(), unit: "ns".to_owned(), log: false, bars },
            Chart::Lines { title: "b".to_owned(), x: "services".to_owned(), y: "ns".to_owned(), lines },
        ];
        let section = Section {
            title: "Cost".to_owned(),
            text: "Less is better.".to_owned(),
            columns: vec!["way".to_owned(), "ns".to_owned()],
            rows: vec![vec!["a | b".to_owned(), "1\n2".to_owned()], vec!["short".to_owned()]],
            charts,
        };
        let facts = vec![("kernel".to_owned(), "6.18".to_owned())];
        Page { title: "Bench".to_owned(), intro: String::new(), facts, sections: vec![section.clone(), section] }
    }

    #[test]
    fn one_file_of_text_and_one_for_each_plot() {
        let directory = tempfile::tempdir().unwrap();
        page().write(&directory.path().join("new"), "compare").unwrap();
        let mut names: Vec<_> =
            fs::read_dir(directory.path().join("new")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        let expected = ["compare-1.svg", "compare-2.svg", "compare-3.svg", "compare-4.svg", "compare.md"];
        assert_eq!(names, expected);
        let text = fs::read_to_string(directory.path().join("new/compare.md")).unwrap();
        assert_eq!(text.matches("![").count(), 4);
        assert!(text.contains("\n![b](compare-4.svg)\n"), "{text}");
    }

    #[test]
    fn cells_stay_cells() {
        let text = page().markdown("x");
        assert!(text.contains("| way | ns |\n| --- | --: |\n| a \\| b | 1 2 |\n| short |  |\n"), "{text}");
    }

    #[test]
    fn nothing_to_show_is_no_error() {
        let directory = tempfile::tempdir().unwrap();
        let section = Section {
            title: String::new(),
            text: String::new(),
            columns: Vec::new(),
            rows: vec![vec!["lost".to_owned()]],
            charts: Vec::new(),
        };
        let empty = |sections| Page { title: String::new(), intro: String::new(), facts: Vec::new(), sections };
        empty(Vec::new()).write(directory.path(), "a").unwrap();
        empty(vec![section]).write(directory.path(), "b").unwrap();
    }

    #[test]
    fn a_page_survives_json() {
        let text = serde_json::to_string(&page()).unwrap();
        let again: Page = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&again).unwrap(), text);
    }
}
