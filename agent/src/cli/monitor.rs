//! `sluice monitor`: what the programs decide, as it happens.

use anyhow::{Context, anyhow};
use clap::Args;
use jiff::tz::TimeZone;

use super::{
    candidates,
    client::{Client, with_query},
    events::EventReader,
    failure::Failure,
    follow::interrupted,
    names,
    output::{self, Output, OutputFormat},
};
use crate::model::words::whole_number;
use crate::view::decisions::{Decision, LostDecisions, Skipped, Told};

/// Characters of a line.
const WIDTH: usize = 80;

/// Show what the programs decide for each connection, as it happens
#[derive(Debug, Args)]
#[command(
    long_about = "Show what the programs decide for each connection and datagram flow, as it happens: who called, where \
        it was sent, and which backends were passed over and why. The filters hold in the kernel. While somebody watches, \
        programs that tell stand in for those that choose backends; they are put back when the last one has gone.",
    after_help = "Examples:\n  sluice monitor --service shop\n  sluice monitor --pid 4711 --all\n  \
        sluice monitor --frontend 10.96.0.10:80 --count 10 -o json\n  sluice monitor --cgroup /system.slice/web.service"
)]
pub struct MonitorArguments {
    /// Calls to frontends of this service
    #[arg(long, value_parser = names::service, add = candidates::services())]
    service: Option<String>,
    /// Calls to this address, such as 10.96.0.10:80 or [fd00::1]:53/udp
    #[arg(long, value_name = "ADDRESS")]
    frontend: Option<String>,
    /// Calls of this process
    #[arg(long, value_parser = whole_number::<u32>)]
    pid: Option<u32>,
    /// Calls from this cgroup and those in it, by directory or name
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Calls to addresses that are no frontend too
    #[arg(long)]
    all: bool,
    /// End after so many decisions
    #[arg(long, value_name = "N", value_parser = whole_number::<u64>)]
    count: Option<u64>,
    #[command(flatten)]
    output: Output,
}

/// What was shown so far.
#[derive(Default)]
struct ShownDecisions {
    decisions: u64,
    lost: u64,
}

impl MonitorArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let mut shown = ShownDecisions::default();
        let watched = tokio::select! {
            watched = self.watch(client, &mut shown) => watched,
            // Without --count, a signal is the usual end.
            signal = interrupted() => signal.map(drop).map_err(Failure::from),
        };
        if shown.lost > 0 {
            output::note(format!("{} decisions shown, {} lost", shown.decisions, shown.lost));
        }
        watched
    }

    async fn watch(&self, client: &Client, shown: &mut ShownDecisions) -> Result<(), Failure> {
        let path = with_query(
            "/v1/monitor",
            &[
                ("service", self.service.clone()),
                ("frontend", self.frontend.clone()),
                ("pid", self.pid.map(|pid| pid.to_string())),
                ("cgroup", self.cgroup.clone()),
                ("all", self.all.then(|| "true".to_owned())),
            ],
        );
        let mut body = client.stream(&path, &[]).await?;
        output::note("watching; Ctrl-C ends it");
        let mut reader = EventReader::default();
        while self.count.is_none_or(|count| shown.decisions < count) {
            let Some(data) = client.piece(&mut body).await? else { return Err(anyhow!("the agent stopped").into()) };
            for text in reader.feed(&data) {
                let told = serde_json::from_str(&text).context("this decision cannot be understood")?;
                match &told {
                    Told::Decision(_) if self.count.is_some_and(|count| shown.decisions >= count) => break,
                    Told::Decision(_) => shown.decisions += 1,
                    Told::Lost(LostDecisions { lost }) => shown.lost += lost,
                }
                self.show(&told)?;
            }
        }
        Ok(())
    }

    fn show(&self, told: &Told) -> Result<(), Failure> {
        match (self.output.output, told) {
            (OutputFormat::Json, told) => output::print(&output::json_line(told)?),
            (OutputFormat::Yaml, told) => output::print(&format!("---\n{}", output::yaml(told)?)),
            (OutputFormat::Table | OutputFormat::Wide, Told::Decision(decision)) => output::print(&text(decision)),
            (OutputFormat::Table | OutputFormat::Wide, Told::Lost(LostDecisions { lost })) => {
                output::print(&format!("... {lost} decisions lost: they came faster than they were shown\n"))
            }
        }
    }
}

/// A few lines: when, what and who; from where to where; what was passed over.
fn text(decision: &Decision) -> String {
    let time = decision.time.to_zoned(TimeZone::system());
    let went = match (&decision.service, &decision.backend, &decision.backend_address) {
        (Some(service), Some(backend), Some(address)) => format!("{service}/{backend} {address}"),
        (Some(service), None, Some(address)) => format!("{service} {address}"),
        (Some(service), ..) => service.to_string(),
        (None, _, Some(address)) => address.to_string(),
        (None, _, None) => String::new(),
    };
    let who = format!("{}/{}", decision.command, decision.pid);
    let time = time.strftime("%H:%M:%S%.3f").to_string();
    let first = [&time, &decision.call, &who, &decision.frontend, &decision.verdict, &went];
    let mut words = vec![format!("cgroup {}", end_of(decision.cgroup.as_deref().unwrap_or("-"), WIDTH - 12))];
    if decision.skipped > 0 {
        let named = decision.skipped_backends.iter().map(skipped);
        let more = decision.skipped - decision.skipped_backends.len().min(decision.skipped);
        let more = (more > 0).then(|| format!("and {more} more"));
        let named: Vec<_> = named.chain(more).collect();
        words.push(format!("skipped {}: {}", decision.skipped, named.join(", ")));
    }
    wrap(&first.map(String::as_str).join(" "), 0) + &words.iter().map(|line| wrap(line, 4)).collect::<String>()
}

fn skipped(skipped: &Skipped) -> String {
    let backend = skipped.backend.as_ref().map_or("-", |name| name.as_str());
    match &skipped.node {
        Some(node) => format!("{backend} on {node} ({})", skipped.why.text()),
        None => format!("{backend} ({})", skipped.why.text()),
    }
}

/// The end of a long text, which says most of a cgroup's name.
fn end_of(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    std::iter::once('…').chain(text.chars().skip(length + 1 - most)).collect()
}

/// Lines of at most [`WIDTH`] characters, cut between words; what goes on is indented further.
fn wrap(text: &str, indent: usize) -> String {
    let mut lines = String::new();
    let mut line = " ".repeat(indent);
    let mut is_empty = true;
    for word in output::printable(text).split(' ').filter(|word| !word.is_empty()) {
        if !is_empty && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines += &format!("{line}\n");
            (line, is_empty) = (" ".repeat(indent + 4), true);
        }
        if !is_empty {
            line.push(' ');
        }
        line += word;
        is_empty = false;
    }
    lines + &line + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{model::Name, view::decisions::Why};

    fn decision() -> Decision {
        let name = |text: &str| Some(Name::new(text).unwrap());
        Decision {
            time: "2026-11-28T10:00:00.123456Z".parse().unwrap(),
            call: "connect4".into(),
            pid: 4711,
            command: "cu\u{1b}rl".into(),
            cgroup: Some("/system.slice/web.service".into()),
            cgroup_id: 77,
            frontend: "10.96.0.10:80".into(),
            verdict: "steered".into(),
            service: name("shop"),
            backend: name("b2"),
            node: name("n2"),
            backend_address: Some("10.0.0.2:8080".parse().unwrap()),
            skipped: 9,
            skipped_backends: vec![
                Skipped { backend: name("b1"), node: name("n1"), why: Why::NodeZeroed },
                Skipped { backend: None, node: None, why: Why::Removed },
            ],
        }
    }

    #[test]
    fn a_decision_is_told_in_80_columns() {
        let text = text(&decision());
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH && !line.contains('\u{1b}')), "{text}");
        let whole: Vec<_> = text.split_whitespace().collect();
        let whole = whole.join(" ");
        for part in [
            "connect4 cu\\u{1b}rl/4711 10.96.0.10:80 steered shop/b2 10.0.0.2:8080",
            "cgroup /system.slice/web.service",
            "skipped 9: b1 on n1 (node zeroed), - (removed), and 7 more",
        ] {
            assert!(whole.contains(part), "{part} in\n{text}");
        }
        let deep = Decision { cgroup: Some("/kubepods.slice".repeat(20) + "/end"), ..decision() };
        let text = super::text(&deep);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH) && text.contains("/end\n"), "{text}");
    }

    #[test]
    fn what_is_sent_can_be_read() {
        for told in [Told::Decision(decision()), Told::Lost(LostDecisions { lost: 3 })] {
            let text = serde_json::to_string(&told).unwrap();
            assert_eq!(serde_json::from_str::<Told>(&text).unwrap(), told);
        }
    }
}
