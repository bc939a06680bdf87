//! One frame, as lines for a terminal or as plain text.

use ratatui::{
    style::{Color, Modifier, Style},
    text::{Line, Span},
};

use super::rates::{BackendRow, Figures, ServiceRow, TopView};
use crate::view::status::AdminState;

/// Lines at the top that do not scroll.
pub const HEAD: usize = 3;
/// Cells of a bar.
const BAR: usize = 20;
/// Least and most cells of a name.
const NAME: [usize; 2] = [15, 40];
/// What stands between the name and the figures.
const MIDDLE: [Column; 7] = [
    Column { title: "NODE", width: 12, of: Of::Node },
    Column { title: "STATE", width: 9, of: Of::State },
    Column { title: "WEIGHT", width: 7, of: Of::Weight },
    Column { title: "DESIRED", width: 8, of: Of::Desired },
    Column { title: "PROGRAMMED", width: 10, of: Of::Programmed },
    Column { title: "OBSERVED", width: 8, of: Of::Observed },
    Column { title: "", width: BAR, of: Of::Bar },
];
/// What a narrow screen does without, one after the other.
const SPARE: [Of; 6] = [Of::Bar, Of::Desired, Of::Programmed, Of::Node, Of::Weight, Of::Observed];
/// NEW/S, ACTIVE and FAILED, which are always there.
const FIGURES: usize = 8 + GAP + 7 + GAP + 7;
const GAP: usize = 2;

#[derive(Clone, Copy)]
struct Column {
    title: &'static str,
    width: usize,
    of: Of,
}

/// What a column shows of a backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    Node,
    State,
    Weight,
    Desired,
    Programmed,
    Observed,
    Bar,
}

/// What fits the screen.
struct Layout {
    name: usize,
    middle: Vec<Column>,
}

impl Layout {
    /// `name`: cells of the longest one. `screen`: those of a line, when there is a screen.
    fn new(name: usize, screen: Option<usize>) -> Self {
        let [least, most] = NAME;
        let mut layout = Self { name: name.clamp(least, most), middle: MIDDLE.to_vec() };
        let Some(screen) = screen else { return layout };
        for spare in SPARE {
            if layout.width() <= screen {
                break;
            }
            layout.middle.retain(|column| column.of != spare);
        }
        let over = layout.width().saturating_sub(screen);
        layout.name = layout.name.saturating_sub(over).max(least);
        layout
    }

    fn width(&self) -> usize {
        self.name + GAP + self.between() + FIGURES
    }

    /// Cells of the middle, with the gaps after each column.
    fn between(&self) -> usize {
        self.middle.iter().map(|column| column.width + GAP).sum()
    }
}

/// The frame, as wide as the screen when there is one. The first [`HEAD`] lines are its head.
pub fn lines(view: &TopView, screen: Option<usize>) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let names = view
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.name.len() + 2).chain([service.name.len()]));
    let layout = Layout::new(names.max().unwrap_or(0), screen);
    let Figures { rate, active, failed } = view.totals;
    let rate = rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let totals = format!(
        "{} services, {} backends   {rate} new/s   {active} active   {failed} failed",
        view.services.len(),
        view.backends
    );
    let mut titles = format!("{:<width$}  ", "SERVICE/BACKEND", width = layout.name);
    for Column { title, width, of } in &layout.middle {
        titles += &match of {
            Of::Node | Of::State | Of::Bar => format!("{title:<width$}  "),
            Of::Weight | Of::Desired | Of::Programmed | Of::Observed => format!("{title:>width$}  "),
        };
    }
    titles += &format!("{:>8}  {:>7}  {:>7}", "NEW/S", "ACTIVE", "FAILED");
    let mut lines = vec![Line::styled(totals, bold), Line::raw(""), Line::styled(titles, Style::new().fg(Color::Cyan))];
    for service in &view.services {
        lines.push(service_line(service, &layout).style(bold));
        lines.extend(service.backends.iter().map(|backend| backend_line(backend, &layout)));
    }
    lines
}

/// The last line of a screen.
pub fn foot(trouble: Option<&str>) -> Line<'static> {
    match trouble {
        Some(trouble) => Line::styled(trouble.to_owned(), Style::new().fg(Color::Red)),
        None => Line::styled("q quits, arrows scroll", Style::new().fg(Color::DarkGray)),
    }
}

/// Lines without their colours and the blanks at their ends.
pub fn plain(lines: &[Line<'_>]) -> String {
    let text = |line: &Line<'_>| {
        let text: String = line.spans.iter().map(|span| span.content.as_ref()).collect();
        format!("{}\n", text.trim_end())
    };
    lines.iter().map(text).collect()
}

fn service_line(service: &ServiceRow, layout: &Layout) -> Line<'static> {
    let (name, between) = (cut(&service.name, layout.name), layout.between());
    let frontend = cut(&service.frontend, between.saturating_sub(GAP));
    let mut spans = vec![Span::raw(format!("{name:<width$}  {frontend:<between$}", width = layout.name))];
    spans.extend(figures(service.figures));
    Line::from(spans)
}

fn backend_line(backend: &BackendRow, layout: &Layout) -> Line<'static> {
    let colour = match backend.state {
        AdminState::Ready => Color::Green,
        AdminState::Zero | AdminState::Draining | AdminState::Drained => Color::Yellow,
        AdminState::Warming => Color::Cyan,
        AdminState::Unhealthy => Color::Red,
    };
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0));
    let name = cut(&format!("  {}", backend.name), layout.name);
    let mut spans = vec![Span::raw(format!("{name:<width$}  ", width = layout.name))];
    for Column { width, of, .. } in &layout.middle {
        spans.push(match of {
            Of::Node => Span::raw(format!("{:<width$}  ", cut(&backend.node, *width))),
            Of::State => Span::styled(format!("{:<width$}  ", backend.state.name()), Style::new().fg(colour)),
            Of::Weight => Span::raw(format!("{:>width$}  ", backend.weight)),
            Of::Desired => Span::raw(format!("{:>width$}  ", percent(Some(backend.desired)))),
            Of::Programmed => Span::raw(format!("{:>width$}  ", percent(Some(backend.programmed)))),
            Of::Observed => Span::raw(format!("{:>width$}  ", percent(backend.observed))),
            Of::Bar => {
                let bar = bar(backend.observed.unwrap_or(0.0), backend.programmed);
                Span::styled(format!("{bar}  "), Style::new().fg(colour))
            }
        });
    }
    spans.extend(figures(backend.figures));
    Line::from(spans)
}

fn figures(figures: Figures) -> [Span<'static>; 2] {
    let rate = figures.rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let failed = if figures.failed == 0 { Style::new() } else { Style::new().fg(Color::Red) };
    [Span::raw(format!("{rate:>8}  {:>7}  ", figures.active)), Span::styled(format!("{:>7}", figures.failed), failed)]
}

/// The observed share, with a mark at the programmed one.
fn bar(observed: f64, programmed: f64) -> String {
    let cells = |share: f64| (share.clamp(0.0, 1.0) * BAR as f64).round() as usize;
    let (filled, mark) = (cells(observed), cells(programmed));
    (0..BAR)
        .map(|cell| match cell {
            _ if mark > 0 && cell == mark - 1 => '|',
            _ if cell < filled => '█',
            _ => '·',
        })
        .collect()
}

fn cut(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        Some(_) => text.chars().take(width - 1).chain(['…']).collect(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::cli::top::rates::tests::snapshot;

    #[test]
    fn a_frame_is_aligned() {
        let start = Instant::now();
        let (first, second) = (snapshot(start, "n1", 100), snapshot(start + Duration::from_secs(2), "n1", 150));
        let text = plain(&lines(&TopView::new(Some(&first), &second), None));
        let expected = "\
1 services, 1 backends   25.0 new/s   3 active   3 failed

SERVICE/BACKEND  NODE          STATE       WEIGHT   DESIRED  PROGRAMMED  OBSERVED                           NEW/S   ACTIVE   FAILED
shop             10.96.0.10:80                                                                               25.0        3        3
  n1             node-1        ready            5    5.00 %      5.00 %   10.00 %  |█··················      25.0        3        1
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn a_narrow_screen_keeps_what_happens() {
        let start = Instant::now();
        let (first, second) = (snapshot(start, "n1", 100), snapshot(start + Duration::from_secs(2), "n1", 150));
        let view = TopView::new(Some(&first), &second);
        for screen in [60, 80, 100, 130] {
            let text = plain(&lines(&view, Some(screen)));
            let all: Vec<_> = text.lines().skip(2).collect();
            assert!(all.iter().all(|line| line.chars().count() <= screen), "{screen}:\n{text}");
            assert!(all[0].ends_with("NEW/S   ACTIVE   FAILED"), "{screen}:\n{text}");
            assert!(all[2].contains("ready") && all[2].ends_with("25.0        3        1"), "{screen}:\n{text}");
            assert_eq!(all[0].contains("OBSERVED"), screen >= 80, "{text}");
        }
    }

    #[test]
    fn bars_show_what_is_and_what_should_be() {
        assert_eq!(bar(0.5, 0.75), "██████████····|·····");
        assert_eq!(bar(1.0, 1.0), "███████████████████|");
        assert_eq!(bar(0.0, 0.0), "····················");
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!((cut("abcdef", 4), cut("abcd", 4)), ("abc…".to_owned(), "abcd".to_owned()));
    }
}
