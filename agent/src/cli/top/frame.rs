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
/// From the node to the bar, with the gap after it.
const BETWEEN: usize = 12 + 2 + 5 + 2 + 7 + 2 + 8 + 2 + 10 + 2 + 8 + 2 + BAR + 2;

/// The frame. The first [`HEAD`] lines are its head.
pub fn lines(view: &TopView) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let width = view
        .services
        .iter()
        .flat_map(|service| service.backends.iter().map(|backend| backend.name.len() + 2).chain([service.name.len()]))
        .max()
        .unwrap_or(0)
        .clamp(15, 40);
    let Figures { rate, active, failed } = view.totals;
    let rate = rate.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
    let totals = format!(
        "{} services, {} backends   {rate} new/s   {active} active   {failed} failed",
        view.services.len(),
        view.backends
    );
    let titles = format!(
        "{:<width$}  {:<12}  {:<5}  {:>7}  {:>8}  {:>10}  {:>8}  {:<BAR$}  {:>8}  {:>7}  {:>7}",
        "SERVICE/BACKEND",
        "NODE",
        "STATE",
        "WEIGHT",
        "DESIRED",
        "PROGRAMMED",
        "OBSERVED",
        "",
        "NEW/S",
        "ACTIVE",
        "FAILED"
    );
    let mut lines = vec![Line::styled(totals, bold), Line::raw(""), Line::styled(titles, Style::new().fg(Color::Cyan))];
    for service in &view.services {
        lines.push(service_line(service, width).style(bold));
        lines.extend(service.backends.iter().map(|backend| backend_line(backend, width)));
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

fn service_line(service: &ServiceRow, width: usize) -> Line<'static> {
    let mut spans = vec![Span::raw(format!("{:<width$}  {:<BETWEEN$}", cut(&service.name, width), service.frontend))];
    spans.extend(figures(service.figures));
    Line::from(spans)
}

fn backend_line(backend: &BackendRow, width: usize) -> Line<'static> {
    let colour = match backend.state {
        AdminState::Ready => Color::Green,
        AdminState::Zero | AdminState::Draining | AdminState::Drained => Color::Yellow,
        AdminState::Warming => Color::Cyan,
        AdminState::Unhealthy => Color::Red,
    };
    let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.2} %", share * 100.0));
    let name = cut(&format!("  {}", backend.name), width);
    let mut spans = vec![
        Span::raw(format!("{name:<width$}  {:<12}  ", cut(&backend.node, 12))),
        Span::styled(format!("{:<5}", backend.state.name()), Style::new().fg(colour)),
        Span::raw(format!(
            "  {:>7}  {:>8}  {:>10}  {:>8}  ",
            backend.weight,
            percent(Some(backend.desired)),
            percent(Some(backend.programmed)),
            percent(backend.observed)
        )),
        Span::styled(bar(backend.observed.unwrap_or(0.0), backend.programmed), Style::new().fg(colour)),
        Span::raw("  "),
    ];
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
        let text = plain(&lines(&TopView::new(Some(&first), &second)));
        let expected = "\
1 services, 1 backends   25.0 new/s   3 active   3 failed

SERVICE/BACKEND  NODE          STATE   WEIGHT   DESIRED  PROGRAMMED  OBSERVED                           NEW/S   ACTIVE   FAILED
shop             10.96.0.10:80                                                                           25.0        3        3
  n1             node-1        ready        5    5.00 %      5.00 %   10.00 %  |█··················      25.0        3        1
";
        assert_eq!(text, expected, "\n{text}");
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
