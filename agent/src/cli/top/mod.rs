//! `sluice top`: services and backends live, with desired, programmed and observed shares side by side.

mod frame;
mod rates;

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use clap::Args;
use jiff::SignedDuration;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    widgets::Paragraph,
};

use super::{
    candidates,
    client::{Client, encode},
    failure::Failure,
    names, output,
};
use crate::http::views::{List, ServiceView};
use rates::{Snapshot, TopView};

/// Watch services and backends live
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sluice top\n  sluice top shop --interval 500ms\n  sluice top --once\n\n\
        Keys: q quits, arrows and page keys scroll. The bar is the observed share; | marks the programmed one.\n\
        Without a terminal it prints one frame and ends.")]
pub struct TopArguments {
    /// One service only
    #[arg(value_parser = names::service, add = candidates::services())]
    service: Option<String>,
    /// Print one frame as text and end
    #[arg(long)]
    once: bool,
    /// Time between two frames
    #[arg(long, default_value = "1s", value_parser = interval, value_name = "TIME")]
    interval: Duration,
}

impl TopArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let first = self.look(client).await?;
        if self.once || !io::stdout().is_terminal() {
            // Rates need two snapshots.
            tokio::time::sleep(self.interval).await;
            let view = TopView::new(Some(&first), &self.look(client).await?);
            return output::print(&frame::plain(&frame::lines(&view, output::columns())));
        }
        let mut terminal = ratatui::try_init().context("preparing the terminal")?;
        let result = self.live(client, first, &mut terminal).await;
        ratatui::restore();
        result
    }

    async fn live(&self, client: &Client, first: Snapshot, terminal: &mut DefaultTerminal) -> Result<(), Failure> {
        let mut view = TopView::new(None, &first);
        let (mut last, mut scroll, mut trouble) = (first, 0, None);
        loop {
            let next_look = Instant::now() + self.interval;
            while Instant::now() < next_look {
                draw(terminal, &view, trouble.as_deref(), &mut scroll).context("drawing")?;
                match key(next_look).context("reading a key")? {
                    Some(Key::Quit) => return Ok(()),
                    Some(Key::Scroll(lines)) => scroll = scroll.saturating_add_signed(lines),
                    None => {}
                }
            }
            match self.look(client).await {
                Ok(snapshot) => {
                    view = TopView::new(Some(&last), &snapshot);
                    (last, trouble) = (snapshot, None);
                }
                // An agent that is being replaced comes back.
                Err(Failure::Unreachable(error) | Failure::Failed(error)) => trouble = Some(format!("{error:#}")),
                Err(Failure::Refused(problem)) => trouble = Some(problem.detail),
                Err(Failure::TimedOut(why)) => trouble = Some(why),
                Err(other) => return Err(other),
            }
        }
    }

    async fn look(&self, client: &Client) -> Result<Snapshot, Failure> {
        let services = match &self.service {
            Some(name) => vec![client.get::<ServiceView>(&format!("/v1/services/{}", encode(name))).await?],
            None => client.get::<List<ServiceView>>("/v1/services").await?.items,
        };
        Ok(Snapshot { at: Instant::now(), services })
    }
}

fn draw(terminal: &mut DefaultTerminal, view: &TopView, trouble: Option<&str>, scroll: &mut usize) -> io::Result<()> {
    terminal.draw(|screen| {
        let area = screen.area();
        let lines = frame::lines(view, Some(area.width.into()));
        let shown = usize::from(area.height).saturating_sub(frame::HEAD + 1);
        *scroll = (*scroll).min(lines.len().saturating_sub(frame::HEAD + shown));
        // The head stays; the rest scrolls below it.
        let visible: Vec<_> = lines
            .iter()
            .take(frame::HEAD)
            .chain(lines.iter().skip(frame::HEAD + *scroll).take(shown))
            .cloned()
            .collect();
        let mut visible = visible;
        visible.push(frame::foot(trouble));
        screen.render_widget(Paragraph::new(visible), area);
    })?;
    Ok(())
}

enum Key {
    Quit,
    Scroll(isize),
}

/// Waits for a key until `end`.
fn key(end: Instant) -> io::Result<Option<Key>> {
    if !event::poll(end.saturating_duration_since(Instant::now()))? {
        return Ok(None);
    }
    let Event::Key(key) = event::read()? else { return Ok(None) };
    if key.kind == KeyEventKind::Release {
        return Ok(None);
    }
    Ok(match key.code {
        KeyCode::Char('q') | KeyCode::Esc => Some(Key::Quit),
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Some(Key::Quit),
        KeyCode::Up | KeyCode::Char('k') => Some(Key::Scroll(-1)),
        KeyCode::Down | KeyCode::Char('j') => Some(Key::Scroll(1)),
        KeyCode::PageUp => Some(Key::Scroll(-20)),
        KeyCode::PageDown => Some(Key::Scroll(20)),
        _ => None,
    })
}

fn interval(text: &str) -> Result<Duration, String> {
    let span: Option<Duration> = text.parse().ok().and_then(|span: SignedDuration| span.try_into().ok());
    let span = span.filter(|span| *span >= Duration::from_millis(100));
    span.ok_or_else(|| format!("{text:?} is no time span: write one of at least 100ms, such as 2s"))
}
