//! What the audience sees: on a terminal a table that is drawn anew in its place, elsewhere a line now and then.

use std::{
    env,
    fmt::Write as _,
    io::{IsTerminal, Write, stdout},
    time::{Duration, Instant},
};

/// Time between two pictures.
pub const FRAME: Duration = Duration::from_millis(250);
/// Time between two lines where there is no terminal.
const LINE: Duration = Duration::from_secs(2);
/// Characters of a full bar. A line must not be longer than a terminal usually is: one that wraps is not covered by the
/// next picture.
const BAR: usize = 10;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const PLAIN: &str = "\x1b[0m";

/// One backend at one moment.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub backend: String,
    pub state: String,
    /// Shares, 0..=1. Unknown while no agent answers.
    pub desired: Option<f64>,
    pub programmed: Option<f64>,
    pub observed: Option<f64>,
    /// Half the width of the observed share's 95 % interval.
    pub margin: Option<f64>,
    /// Answers that the clients got from it in this act, and their share.
    pub answers: u64,
    pub answered: f64,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub rows: Vec<Row>,
    /// New connections a second, lately.
    pub rate: f64,
    /// Connections and failures of the clients since the beginning.
    pub connections: u64,
    pub failures: u64,
    /// What the agent does.
    pub agent: String,
}

/// Draws.
#[derive(Debug)]
pub struct Screen {
    live: bool,
    /// Lines of the last picture, which the next one covers.
    drawn: usize,
    last_line: Option<Instant>,
    start: Instant,
}

impl Screen {
    /// SLUICE_DEMO_LIVE says what the output is where that cannot be seen: the end of a serial line.
    pub fn new() -> Self {
        let live = stdout().is_terminal() || env::var_os("SLUICE_DEMO_LIVE").is_some();
        Self { live, drawn: 0, last_line: None, start: Instant::now() }
    }

    /// What the lines mean, where there is no table with a head.
    pub fn explain(&mut self) {
        if !self.live {
            self.say("Each backend below: its state, and its desired, programmed and observed share and that of the");
            self.say("answers that the clients got in the act.");
        }
    }

    /// Words that stay.
    pub fn say(&mut self, text: &str) {
        // The last picture stays too.
        self.drawn = 0;
        self.put(&format!("{text}\n"));
    }

    /// The heading of an act.
    pub fn title(&mut self, text: &str) {
        self.last_line = None;
        let seconds = self.start.elapsed().as_secs();
        let text = format!("\n{}", self.in_style(BOLD, &format!("[{seconds:2} s] {text}")));
        self.say(&text);
    }

    /// Something that went as promised, or did not.
    pub fn verdict(&mut self, held: bool, text: &str) {
        let mark = if held { self.in_style(GREEN, "ok") } else { self.in_style(RED, "BROKEN") };
        self.say(&format!("  {mark}  {text}"));
    }

    /// The present moment.
    pub fn draw(&mut self, picture: &Picture) {
        if !self.live {
            if self.last_line.is_none_or(|last| last.elapsed() >= LINE) {
                self.last_line = Some(Instant::now());
                self.put(&format!("{}\n", brief(picture)));
            }
            return;
        }
        let text = self.table(picture);
        let up = if self.drawn > 0 { format!("\x1b[{}A", self.drawn) } else { String::new() };
        self.drawn = text.lines().count();
        // Clear the rest of each line and everything below.
        self.put(&format!("{up}\r{}\x1b[J", text.replace('\n', "\x1b[K\n")));
    }

    fn table(&self, picture: &Picture) -> String {
        let mut text = String::new();
        let head = format!(
            "  {:7} {:8} {:>7}  {:>10}  {:>13}  {}",
            "BACKEND", "STATE", "DESIRED", "PROGRAMMED", "OBSERVED", "WHAT THE CLIENTS SEE"
        );
        let _ = writeln!(text, "{}", self.in_style(DIM, &head));
        for row in &picture.rows {
            let filled = ((row.answered * BAR as f64).round() as usize).min(BAR);
            let bar = format!("{}{}", "█".repeat(filled), "·".repeat(BAR - filled));
            let observed = match (row.observed, row.margin) {
                (Some(share), Some(margin)) => format!("{} ±{:4.1}", percent(Some(share)), 100.0 * margin),
                _ => percent(row.observed),
            };
            let state = self.in_style(if row.state != "ready" { RED } else { GREEN }, &format!("{:8}", row.state));
            let (desired, programmed) = (percent(row.desired), percent(row.programmed));
            let (bar, answered) = (self.in_style(GREEN, &bar), percent(Some(row.answered)));
            let _ = write!(text, "  {:7} {state} {desired:>7}  {programmed:>10}  {observed:>13}  ", row.backend);
            let _ = writeln!(text, "{bar} {answered} {:5}", row.answers);
        }
        let failures = format!("{} failed", picture.failures);
        let _ = writeln!(
            text,
            "  {:.0} new connections a second, {} in all, {}; agent: {}",
            picture.rate,
            picture.connections,
            if picture.failures == 0 { failures } else { self.in_style(RED, &failures) },
            picture.agent
        );
        text
    }

    fn in_style(&self, style: &str, text: &str) -> String {
        if self.live { format!("{style}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn put(&self, text: &str) {
        // Nobody to show it to is no reason to stop.
        let mut output = stdout().lock();
        let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
    }
}

fn brief(picture: &Picture) -> String {
    let mut text = String::from(" ");
    for Row { backend, state, desired, programmed, observed, answered, .. } in &picture.rows {
        let shares = [*desired, *programmed, *observed, Some(*answered)].map(|share| percent(share).trim().to_owned());
        let _ = write!(text, " {backend} {state} {};", shares.join(" "));
    }
    let Picture { rate, connections, failures, agent, .. } = picture;
    let _ = write!(text, " {rate:.0}/s, {connections} connections, {failures} failed; agent: {agent}");
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:5.1}%", 100.0 * share))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_covers_the_one_before() {
        let screen = Screen { live: true, drawn: 0, last_line: None, start: Instant::now() };
        let picture = Picture { rows: vec![Row::default(); 3], ..Picture::default() };
        let text = screen.table(&picture);
        assert_eq!(text.lines().count(), 5);
        assert!(text.lines().all(|line| line.chars().filter(|character| !character.is_control()).count() < 100));
    }
}
