//! The curve of a warm-up as a small plot: part of the weight over time, and where a backend stands.

use std::{fmt::Write, time::Duration};

use crate::model::Warmup;

const WIDTH: u32 = 48;
const HEIGHT: u32 = 8;
/// Cells filled by eighths.
const BLOCKS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `elapsed`: time since the start of a backend's warm-up.
pub fn plot(warmup: &Warmup, elapsed: Option<Duration>) -> String {
    let whole = warmup.delay.duration() + warmup.duration.duration();
    // A column shows the part at its end.
    let at = |column: u32| warmup.part(whole * (column + 1) / WIDTH);
    let here = elapsed.map(|elapsed| (elapsed.as_secs_f64() / whole.as_secs_f64() * f64::from(WIDTH)) as u32);
    let mut text = String::new();
    for row in (0..HEIGHT).rev() {
        let label = match row {
            row if row == HEIGHT - 1 => "100 %",
            0 => "  0 %",
            _ => "     ",
        };
        let cells: String = (0..WIDTH).map(|column| cell(at(column), row)).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label} |{}", cells.trim_end());
    }
    let _ = writeln!(text, "      +{}", "-".repeat(WIDTH as usize));
    let end = format!("{}s", whole.as_secs_f64());
    let _ = writeln!(text, "       0s{end:>width$}", width = WIDTH as usize - 2);
    if let Some(here) = here {
        let _ = writeln!(text, "       {:>width$} now", '^', width = here.min(WIDTH - 1) as usize + 1);
    }
    text
}

/// The cell in `row` of a column that is `part` thousandths high.
fn cell(part: u32, row: u32) -> char {
    let eighths = part * HEIGHT * 8 / 1000;
    let full = eighths.saturating_sub(row * 8).min(8) as usize;
    BLOCKS[full]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Curve, Span};

    #[test]
    fn a_line_rises_evenly_and_a_power_late() {
        let linear = Warmup { duration: Span::seconds(60), ..Warmup::default() };
        let power = Warmup { curve: Curve::Power, ..linear.clone() };
        let filled = |warmup: &Warmup| plot(warmup, None).chars().filter(|c| *c == '█').count();
        assert!(filled(&linear) > filled(&power) && filled(&power) > 0);
        let shown = plot(&linear, Some(Duration::from_secs(30)));
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("100 % |") && lines[0].ends_with('█'), "{shown}");
        assert_eq!(lines.last().unwrap().find('^'), Some(7 + 24), "{shown}");
        assert!(shown.contains("60s"), "{shown}");
    }
}
