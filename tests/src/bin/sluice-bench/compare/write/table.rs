//! Tables whose best values are bold.

use super::super::readings::{Measure, Readings, Value};
use crate::page::Section;

/// What is good in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Good {
    Much,
    Little,
    /// Words, or numbers that say nothing about who is better.
    Neither,
}

/// A cell: what is compared, and what is shown.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    pub value: Option<f64>,
    pub text: String,
}

/// What a column shows of a candidate.
type Show<'a> = Box<dyn Fn(&Readings, &str) -> Cell + 'a>;

/// A column: its head, what is good, and the cell of a candidate.
pub struct Column<'a> {
    pub head: String,
    pub good: Good,
    pub cell: Show<'a>,
}

impl<'a> Column<'a> {
    pub fn new(head: &str, good: Good, cell: impl Fn(&Readings, &str) -> Cell + 'a) -> Self {
        Self { head: head.to_owned(), good, cell: Box::new(cell) }
    }
}

impl Cell {
    /// Nothing was measured.
    pub fn none() -> Self {
        Self { value: None, text: "-".to_owned() }
    }

    /// Words.
    pub fn words(words: &str) -> Self {
        Self { value: None, text: words.to_owned() }
    }

    /// A median, and how far the samples reach where there are several.
    pub fn of(value: Option<&Value>, shown: impl Fn(f64) -> String) -> Self {
        match value {
            None => Self::none(),
            Some(Value::Words(words)) => Self::words(words),
            Some(Value::Number { median, samples: 1, .. }) => Self { value: Some(*median), text: shown(*median) },
            Some(Value::Number { median, low, high, .. }) => {
                let text = format!("{} ({} .. {})", shown(*median), shown(*low), shown(*high));
                Self { value: Some(*median), text }
            }
        }
    }

    /// A median alone.
    pub fn short(value: Option<&Value>, shown: impl Fn(f64) -> String) -> Self {
        let median = value.and_then(Value::median);
        median.map_or_else(Self::none, |median| Self { value: Some(median), text: shown(median) })
    }

    /// A median over that of direct.
    pub fn over_direct(readings: &Readings, who: &str, measure: Measure) -> Self {
        let median = |who: &str| readings.first(who, measure).and_then(Value::median);
        let (Some(value), Some(direct)) = (median(who), median(DIRECT)) else { return Self::none() };
        let ratio = value / direct;
        Self { value: Some(ratio), text: format!("{ratio:.2}") }
    }
}

/// The candidate that is not judged.
pub const DIRECT: &str = "direct";

/// The rows of all candidates of a run, the best cells in bold. What is shown alike is equally good.
pub fn rows(columns: &[Column], readings: &Readings, suffix: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = readings.who.iter().map(|who| vec![format!("{who}{suffix}")]).collect();
    for column in columns {
        let cells: Vec<Cell> = readings.who.iter().map(|who| (column.cell)(readings, who)).collect();
        let judged = || cells.iter().zip(&readings.who).filter(|(_, who)| *who != DIRECT).map(|(cell, _)| cell);
        let numbers = judged().filter_map(|cell| Some((cell.value?, &cell.text)));
        let best = match column.good {
            Good::Much => numbers.max_by(|left, right| left.0.total_cmp(&right.0)),
            Good::Little => numbers.min_by(|left, right| left.0.total_cmp(&right.0)),
            Good::Neither => None,
        };
        let best = best.map(|(_, text)| text.split(" (").next().unwrap_or_default().to_owned());
        for ((row, cell), who) in rows.iter_mut().zip(&cells).zip(&readings.who) {
            let (head, tail) = cell.text.split_once(" (").map_or((cell.text.as_str(), None), |(a, b)| (a, Some(b)));
            let is_best = cell.value.is_some() && who != DIRECT && best.as_deref() == Some(head);
            let head = if is_best { format!("**{head}**") } else { head.to_owned() };
            row.push(tail.map_or_else(|| head.clone(), |tail| format!("{head} ({tail}")));
        }
    }
    rows
}

/// A section's table alone.
pub fn markdown(section: &Section) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = format!("|{}\n", "---|".repeat(section.columns.len()));
    let rows: String = section.rows.iter().map(|row| line(row)).collect();
    line(&section.columns) + &rule + &rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::readings::Of;

    #[test]
    fn the_best_is_bold_and_direct_is_not_judged() {
        let mut readings = Readings { who: ["direct", "a", "b"].map(str::to_owned).to_vec(), ..Readings::default() };
        for (who, value) in [("direct", 100.0), ("a", 40.0), ("b", 90.0)] {
            readings.number(Of::plain(who), Measure::Rate, &[value, value + 1.0]);
        }
        let cell = |readings: &Readings, who: &str| Cell::of(readings.first(who, Measure::Rate), |v| format!("{v:.0}"));
        let rows = rows(&[Column::new("", Good::Much, cell)], &readings, "");
        let expected = [["direct", "101 (100 .. 101)"], ["a", "41 (40 .. 41)"], ["b", "**91** (90 .. 91)"]];
        assert_eq!(rows, expected);
    }
}
