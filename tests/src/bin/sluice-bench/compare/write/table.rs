//! Tables whose best values are bold.

use super::super::readings::{Measure, Readings, Value};

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
    pub value: Judged,
    pub text: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Judged {
    /// Nothing.
    Not,
    /// The median, and how far its samples reach.
    Value { median: f64, low: f64, high: f64 },
    /// Below this; nobody knows how far.
    Below(f64),
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
        Self::words("-")
    }

    /// Words.
    pub fn words(words: &str) -> Self {
        Self { value: Judged::Not, text: words.to_owned() }
    }

    /// A median, and how far the samples reach where there are several.
    pub fn of(value: Option<&Value>, shown: impl Fn(f64) -> String) -> Self {
        match value {
            Some(Value::Words(words)) => Self::words(words),
            Some(Value::Number { median, low, high, samples }) if samples.len() > 1 => {
                let text = format!("{} ({} .. {})", shown(*median), shown(*low), shown(*high));
                Self { text, ..Self::short(value, shown) }
            }
            None | Some(Value::Number { .. }) => Self::short(value, shown),
        }
    }

    /// Compared by the median alone: what is exact is better than what was once exact by chance.
    pub fn by_median(self) -> Self {
        match self.value {
            Judged::Value { median, .. } => Self { value: Judged::Value { median, low: median, high: median }, ..self },
            Judged::Not | Judged::Below(_) => self,
        }
    }

    /// The greatest of the samples: of what should never be.
    pub fn most(value: Option<&Value>, shown: impl Fn(f64) -> String) -> Self {
        let Some(Value::Number { high, .. }) = value else { return Self::none() };
        Self { value: Judged::Value { median: *high, low: *high, high: *high }, text: shown(*high) }
    }

    /// A median alone.
    pub fn short(value: Option<&Value>, shown: impl Fn(f64) -> String) -> Self {
        let Some(Value::Number { median, low, high, .. }) = value else { return Self::none() };
        let (median, low, high) = (*median, *low, *high);
        Self { value: Judged::Value { median, low, high }, text: shown(median) }
    }

    /// Over what direct had in the same round.
    pub fn over_direct(readings: &Readings, who: &str, measure: Measure) -> Self {
        let of = |who: &str| readings.first(who, measure);
        let ratio = of(who).zip(of(DIRECT)).and_then(|(value, direct)| value.over(direct));
        Self::of(ratio.as_ref(), |ratio| format!("{ratio:.2}"))
    }
}

impl Good {
    /// Whether a cell is as good as the best of these. Values whose samples overlap are equally good. So are values below
    /// what could be told apart, and with them whatever is not above the largest of their bounds.
    fn is_best(self, cell: Judged, all: &[Judged]) -> bool {
        let bounds = all.iter().filter_map(|cell| if let Judged::Below(bound) = cell { Some(*bound) } else { None });
        let medians = all.iter().filter_map(|cell| match cell {
            Judged::Value { median, low, high } => Some((*median, *low, *high)),
            Judged::Not | Judged::Below(_) => None,
        });
        let best = match self {
            Self::Much => medians.max_by(|left, right| left.0.total_cmp(&right.0)),
            Self::Little => match bounds.max_by(f64::total_cmp) {
                Some(bound) => Some((0.0, 0.0, bound)),
                None => medians.min_by(|left, right| left.0.total_cmp(&right.0)),
            },
            Self::Neither => None,
        };
        match (cell, best) {
            (Judged::Value { low, high, .. }, Some((_, least, most))) => low <= most && least <= high,
            (Judged::Below(_), Some(_)) => self == Self::Little,
            (Judged::Not, _) | (_, None) => false,
        }
    }
}

/// The candidate that is not judged.
pub const DIRECT: &str = "direct";

/// The rows of all candidates of a run, the best cells in bold.
pub fn rows(columns: &[Column], readings: &Readings, suffix: &str) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = readings.who.iter().map(|who| vec![format!("{who}{suffix}")]).collect();
    for column in columns {
        let cells: Vec<Cell> = readings.who.iter().map(|who| (column.cell)(readings, who)).collect();
        let judged = cells.iter().zip(&readings.who).filter(|(_, who)| *who != DIRECT);
        let judged: Vec<Judged> = judged.map(|(cell, _)| cell.value).collect();
        for ((row, cell), who) in rows.iter_mut().zip(&cells).zip(&readings.who) {
            let is_best = who != DIRECT && column.good.is_best(cell.value, &judged);
            row.push(if is_best { bold(&cell.text) } else { cell.text.clone() });
        }
    }
    rows
}

/// How far samples reach stays as it is.
fn bold(text: &str) -> String {
    match text.split_once(" (") {
        Some((head, tail)) => format!("**{head}** ({tail}"),
        None => format!("**{text}**"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::readings::Of;

    #[test]
    fn the_best_is_bold_and_direct_is_not_judged() {
        let mut readings = Readings { who: ["direct", "a", "b"].map(str::to_owned).to_vec(), ..Readings::default() };
        for (who, value) in [("direct", 100.0), ("a", 40.0), ("b", 90.0)] {
            readings.number(Of::plain(who), Measure::Rate, &[value, value + 2.0]);
        }
        let cell = |readings: &Readings, who: &str| Cell::of(readings.first(who, Measure::Rate), |v| format!("{v:.0}"));
        let rows = rows(&[Column::new("", Good::Much, cell)], &readings, "");
        let expected = [["direct", "101 (100 .. 102)"], ["a", "41 (40 .. 42)"], ["b", "**91** (90 .. 92)"]];
        assert_eq!(rows, expected);
    }

    #[test]
    fn what_cannot_be_told_apart_is_equally_good() {
        let value = |median: f64, by: f64| Judged::Value { median, low: median - by, high: median + by };
        let best = |all: &[Judged]| -> Vec<bool> { all.iter().map(|cell| Good::Little.is_best(*cell, all)).collect() };
        assert_eq!(best(&[value(5.0, 1.0), value(6.5, 1.0), value(9.0, 1.0), Judged::Not]), [true, true, false, false]);
        let below = [Judged::Below(1.0), Judged::Below(4.0), value(3.0, 0.5), value(6.0, 0.5)];
        assert_eq!(best(&below), [true, true, true, false]);
    }
}
