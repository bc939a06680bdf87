//! What is printed: tables for people, JSON and YAML for programs.

use std::{
    fmt::Display,
    io::{self, ErrorKind, IsTerminal, Write},
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use comfy_table::{Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table as Grid, presets};
use jiff::{SignedDuration, Timestamp};
use ratatui::crossterm::terminal;
use serde::Serialize;

use super::failure::Failure;
use crate::view::status::AdminState;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// How to print: table, wide (a table with more columns), json or yaml
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT", hide_possible_values = true)]
    pub output: OutputFormat,
}

impl Output {
    /// Prints `value` as JSON or YAML if asked to. `false`: a table is wanted.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print(self, value: &impl Serialize) -> Result<bool, Failure> {
        match self.output {
            OutputFormat::Json => print(&json(value)?)?,
            OutputFormat::Yaml => print(&yaml(value)?)?,
            OutputFormat::Table | OutputFormat::Wide => return Ok(false),
        }
        Ok(true)
    }

    pub fn is_wide(self) -> bool {
        self.output == OutputFormat::Wide
    }
}

/// `value` as indented JSON with a line feed.
///
/// # Errors
/// When it has no form in JSON.
pub fn json(value: &impl Serialize) -> Result<String, Failure> {
    Ok(escaped(&serde_json::to_string_pretty(value).context("writing JSON")?) + "\n")
}

/// `value` as JSON on one line, with a line feed.
///
/// # Errors
/// When it has no form in JSON.
pub fn json_line(value: &impl Serialize) -> Result<String, Failure> {
    Ok(escaped(&serde_json::to_string(value).context("writing JSON")?) + "\n")
}

/// JSON whose texts tell a terminal nothing: serde_json escapes control characters of ASCII alone.
fn escaped(json: &str) -> String {
    let escape = |c: char| if c != '\n' && is_unseen(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escape).collect()
}

/// Control characters, and those that are not seen and change how the text around them is seen: directions, joiners, widths.
fn is_unseen(c: char) -> bool {
    const FORMATS: [std::ops::RangeInclusive<char>; 6] = [
        '\u{ad}'..='\u{ad}',
        '\u{61c}'..='\u{61c}',
        '\u{180e}'..='\u{180e}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{206f}',
    ];
    c.is_control() || c == '\u{feff}' || FORMATS.iter().any(|range| range.contains(&c))
}

/// `value` as YAML.
///
/// # Errors
/// When it has no form in YAML.
pub fn yaml(value: &impl Serialize) -> Result<String, Failure> {
    // By way of JSON: both forms have the same names and leave out the same fields.
    let value = serde_json::to_value(value).context("writing YAML")?;
    Ok(serde_saphyr::to_string(&value).context("writing YAML")?)
}

/// Writes to standard output.
///
/// # Errors
/// [`Failure::Unread`] when nobody reads it.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Unread),
        Err(error) => Err(anyhow::Error::new(error).context("writing to standard output").into()),
    }
}

/// Writes a line to standard error. That nobody reads it is no failure.
pub fn note(text: impl AsRef<str>) {
    let lines = text.as_ref().lines().map(|line| printable(line) + "\n");
    let _ = io::stderr().write_all(lines.collect::<String>().as_bytes());
}

/// `text` with characters that are not seen, which may come from names that others chose, written as escapes.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if is_unseen(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

/// Whether colours are wanted: on a terminal, unless NO_COLOR is set (<https://no-color.org>).
pub fn has_colour() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Blanks between two columns of a table.
const GAP: usize = 2;

/// Columns of the screen: what COLUMNS says, as `ps` has it, or those of the terminal. `None`: output that nobody reads on
/// a screen is as wide as it is.
pub fn columns() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|columns| *columns > 0);
    said.or_else(|| {
        let (columns, _) = terminal::size().ok().filter(|_| io::stdout().is_terminal())?;
        Some(usize::from(columns))
    })
}

/// A table without borders.
pub struct TextTable {
    grid: Grid,
    header: Vec<String>,
    rows: usize,
    /// Columns that a screen may do without, the least of them first.
    spare: &'static [&'static str],
}

impl TextTable {
    pub fn new(header: &[&str]) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        grid.set_header(header.iter().map(Cell::new));
        if has_colour() {
            grid.enforce_styling();
        } else {
            grid.force_no_tty();
        }
        for column in grid.column_iter_mut() {
            column.set_padding((0, GAP as u16));
        }
        Self { grid, header: header.iter().map(ToString::to_string).collect(), rows: 0, spare: &[] }
    }

    /// The same, which leaves out these columns one after the other where the lines are longer than the screen.
    pub fn sparing(self, spare: &'static [&'static str]) -> Self {
        Self { spare, ..self }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.grid.add_row(cells);
        self.rows += 1;
    }

    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Lines without blanks at their ends, for the screen.
    pub fn text(&self) -> String {
        self.fitting(columns())
    }

    fn fitting(&self, columns: Option<usize>) -> String {
        let mut grid = self.grid.clone();
        let widths = grid.column_max_content_widths();
        let mut total = widths.iter().map(|width| usize::from(*width) + GAP).sum::<usize>().saturating_sub(GAP);
        for name in self.spare {
            if columns.is_none_or(|columns| total <= columns) {
                break;
            }
            let Some(index) = self.header.iter().position(|held| held == name) else { continue };
            if let (Some(column), Some(width)) = (grid.column_mut(index), widths.get(index)) {
                column.set_constraint(ColumnConstraint::Hidden);
                total = total.saturating_sub(usize::from(*width) + GAP);
            }
        }
        let mut text = grid.trim_fmt();
        text.push('\n');
        text
    }
}

/// A cell of text.
pub fn text(value: impl Display) -> Cell {
    let value = printable(&value.to_string());
    Cell::new(if value.is_empty() { "-".to_owned() } else { value })
}

/// A cell of text that may be missing.
pub fn maybe(value: Option<impl Display>) -> Cell {
    text(value.map(|value| value.to_string()).unwrap_or_default())
}

/// A cell of a number.
pub fn number(value: impl Display) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// A cell of a number that is bad news unless it is 0.
pub fn fault(value: u64) -> Cell {
    let cell = number(value);
    if value == 0 { cell } else { cell.fg(Color::Red) }
}

/// A cell of a share, 0..=1.
pub fn percent(share: Option<f64>) -> Cell {
    number(share.map_or("-".to_owned(), percentage))
}

pub fn state(state: AdminState) -> Cell {
    let cell = Cell::new(state.name());
    match state {
        AdminState::Ready => cell.fg(Color::Green),
        AdminState::Zero | AdminState::Draining | AdminState::Drained => cell.fg(Color::Yellow),
        AdminState::Warming => cell.fg(Color::Cyan),
        AdminState::Unhealthy => cell.fg(Color::Red),
    }
}

/// `5.00 %`, with enough digits to tell 0.1 % from nothing.
pub fn percentage(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// How long ago, in one or two units.
pub fn ago(then: Option<Timestamp>) -> String {
    then.map_or("-".to_owned(), |then| format!("{} ago", duration(Timestamp::now().duration_since(then))))
}

/// A time span in one or two units: `850ms`, `1.5s`, `3m20s`, `2h05m`, `3d4h`. By hand: jiff's own forms have all units.
pub fn duration(span: SignedDuration) -> String {
    let millis = span.as_millis().max(0);
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis}ms"),
        1..60 => format!("{:.1}s", millis as f64 / 1000.0),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Lines of `name: value`, aligned.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let line = |(name, value): &(&str, String)| {
        let value = if value.is_empty() { "-".to_owned() } else { printable(value) };
        format!("{:<width$}  {value}\n", format!("{name}:"))
    };
    fields.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_named_tells_a_terminal_nothing() {
        let name = "a\u{9b}2J\u{202e}\u{200b}\u{7f}\u{1b}[1m\"é";
        let shown = printable(name);
        assert!(shown.chars().all(|c| c.is_ascii_graphic() || c == 'é'), "{shown}");
        for text in [json(&name).unwrap(), json_line(&name).unwrap()] {
            assert!(text.trim_end().chars().all(|c| c.is_ascii_graphic() || c == 'é'), "{text}");
            assert_eq!(serde_json::from_str::<String>(&text).unwrap(), name);
        }
    }

    #[test]
    fn tables_have_no_borders_and_no_blanks_at_the_end() {
        let mut table = TextTable::new(&["NAME", "WEIGHT", "NODE"]);
        table.row([text("n1"), number(5), maybe(None::<&str>)]);
        table.row([text("backend-2"), number(100), text("node-1")]);
        assert_eq!(table.text(), "NAME       WEIGHT  NODE\nn1              5  -\nbackend-2     100  node-1\n");
    }

    #[test]
    fn a_narrow_screen_does_without_the_columns_that_it_can_spare() {
        let mut table = TextTable::new(&["NAME", "ADDRESS", "NODE", "NEW"]).sparing(&["ADDRESS", "NODE"]);
        table.row([text("n1"), text("10.0.0.1:8080"), text("node-1"), number(5)]);
        let whole = "NAME  ADDRESS        NODE    NEW\nn1    10.0.0.1:8080  node-1    5\n";
        for (columns, shown) in [
            (None, whole),
            (Some(32), whole),
            (Some(31), "NAME  NODE    NEW\nn1    node-1    5\n"),
            (Some(12), "NAME  NEW\nn1      5\n"),
            (Some(3), "NAME  NEW\nn1      5\n"),
        ] {
            assert_eq!(table.fitting(columns), shown, "{columns:?}");
        }
    }

    #[test]
    fn spans_are_short() {
        for (millis, expected) in [
            (-5, "0ms"),
            (850, "850ms"),
            (1500, "1.5s"),
            (200_000, "3m20s"),
            (7_500_000, "2h05m"),
            (273_600_000, "3d4h"),
        ] {
            assert_eq!(duration(SignedDuration::from_millis(millis)), expected);
        }
    }

    #[test]
    fn what_others_named_cannot_speak_to_the_terminal() {
        assert_eq!(fields(&[("reason", "a\u{1b}[2J\nb: ä".into())]), "reason:  a\\u{1b}[2J\\nb: ä\n");
    }

    #[test]
    fn fields_are_aligned() {
        assert_eq!(fields(&[("a", "1".into()), ("long", String::new())]), "a:     1\nlong:  -\n");
    }
}
