//! `sluice events`: what happened, and what happens.

use std::time::Duration;

use clap::Args;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::sleep;

use super::{
    client::{Client, with_query},
    failure::Failure,
    follow::is_away,
    output::{self, Output, OutputFormat},
};
use crate::{http::views::List, model::words::whole_number, view::events::Event};

/// Between two tries to find an agent again.
const PAUSE: Duration = Duration::from_millis(500);

/// Show what happened, and with --follow what happens
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice events\n  sluice events --follow\n  sluice events --follow --after 1795248000000000 -o json"
)]
pub struct EventsArguments {
    /// Go on with what happens from now on, over restarts of the agent
    #[arg(long, short)]
    follow: bool,
    /// Begin after the event with this id [default: the oldest one held]
    #[arg(long, value_name = "ID", value_parser = whole_number::<u64>)]
    after: Option<u64>,
    #[command(flatten)]
    output: Output,
}

impl EventsArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        if !self.follow {
            let path = with_query(
                "/v1/events",
                &[("follow", Some("false".into())), ("after", self.after.map(|id| id.to_string()))],
            );
            let list: List<Event> = client.get(&path).await?;
            return list.items.iter().try_for_each(|event| self.show(event));
        }
        self.follow(client).await
    }

    /// Shows what happens until somebody interrupts. An agent that stops is waited for, and what happened meanwhile told
    /// then.
    async fn follow(&self, client: &Client) -> Result<(), Failure> {
        let mut last = self.after.unwrap_or(0);
        let mut away = false;
        loop {
            match client.stream("/v1/events", &[("last-event-id", &last.to_string())]).await {
                Ok(body) => {
                    if std::mem::take(&mut away) {
                        output::note("an agent answers again");
                    }
                    self.pass_on(client, body, &mut last).await?;
                }
                Err(failure) if away && (is_away(&failure) || matches!(failure, Failure::TimedOut(_))) => {}
                Err(failure) => return Err(failure),
            }
            if !std::mem::replace(&mut away, true) {
                output::note(format!("the agent stopped after event {last}; waiting for one"));
            }
            sleep(PAUSE).await;
        }
    }

    /// Shows what comes until nothing comes any more.
    async fn pass_on(&self, client: &Client, mut body: Incoming, last: &mut u64) -> Result<(), Failure> {
        let mut reader = EventReader::default();
        while let Ok(Some(data)) = client.piece(&mut body).await {
            for text in reader.feed(&data) {
                match serde_json::from_str::<Event>(&text) {
                    Ok(event) => {
                        *last = event.id;
                        self.show(&event)?;
                    }
                    // What is no event is a word to the reader.
                    Err(_) => {
                        let told: Option<Value> = serde_json::from_str(&text).ok();
                        output::note(told.as_ref().and_then(|told| told["message"].as_str()).unwrap_or(&text));
                    }
                }
            }
        }
        Ok(())
    }

    fn show(&self, event: &Event) -> Result<(), Failure> {
        match self.output.output {
            OutputFormat::Json => output::print(&output::json_line(event)?),
            OutputFormat::Yaml => output::print(&format!("---\n{}", output::yaml(event)?)),
            OutputFormat::Table | OutputFormat::Wide => {
                let id = if self.output.is_wide() { format!("{}  ", event.id) } else { String::new() };
                let object = event.object.as_deref().unwrap_or("-");
                let kind = event.kind.name();
                let by = event.by.as_deref().map(|by| format!("  [{}]", output::printable(by))).unwrap_or_default();
                output::print(&format!(
                    "{id}{:.3}  {kind:<14}  {object:<20}  {}{by}\n",
                    event.time,
                    output::printable(&event.message)
                ))
            }
        }
    }
}

/// Takes server-sent events apart: gives the data of each that is complete.
#[derive(Default)]
pub struct EventReader {
    pending: Vec<u8>,
    data: String,
}

impl EventReader {
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.pending.extend_from_slice(bytes);
        let mut complete = Vec::new();
        while let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]);
            let line = line.trim_end_matches('\r');
            if line.is_empty() {
                if !self.data.is_empty() {
                    complete.push(std::mem::take(&mut self.data));
                }
            } else if let Some(data) = line.strip_prefix("data:") {
                self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
            }
        }
        complete
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_found_however_they_are_cut() {
        let stream =
            b": keep-alive\n\nid: 1\nevent: zeroed\ndata: {\"a\": 1}\n\ndata: {\"b\"\r\ndata::2}\r\n\r\ndata: rest";
        for cut in 0..stream.len() {
            let mut reader = EventReader::default();
            let mut found = reader.feed(&stream[..cut]);
            found.extend(reader.feed(&stream[cut..]));
            assert_eq!(found, ["{\"a\": 1}", "{\"b\":2}"], "cut at {cut}");
        }
    }
}
