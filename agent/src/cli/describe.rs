//! `sluice describe`: all there is to say about a service, a node or a backend.

use std::collections::BTreeMap;

use clap::Args;
use jiff::Timestamp;
use serde_json::Value;

use super::{
    candidates,
    client::{Client, encode, with_query},
    curve,
    failure::Failure,
    get,
    names::Named,
    output::{self, TextTable, ago, fault, fields, maybe, number, percent, percentage, state, text},
};
use crate::{
    http::{
        connections::Connections,
        views::{BackendView, NodeView, ServiceView},
    },
    model::{ServiceProtocol, Stage, quiet, words::plural},
    view::{
        health::Reason,
        operations::Operation,
        proof::ZeroStatus,
        status::{BackendStatus, ServiceStatus},
    },
};

/// Drains in words, by the ids of their operations.
type Drains = BTreeMap<String, String>;

/// Show all there is to say about a service, a node or a backend
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sluice describe shop\n  sluice describe node/node-1\n  sluice describe shop/n1")]
pub struct DescribeArguments {
    /// SERVICE, service/SERVICE, node/NODE or SERVICE/BACKEND
    #[arg(add = candidates::named())]
    name: String,
}

impl DescribeArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let text = match Named::read(&self.name) {
            Named::Service(name) => {
                let view: ServiceView = match client.get(&format!("/v1/services/{}", encode(&name))).await {
                    Ok(view) => view,
                    Err(failure) => return Err(hint(client, &name, failure).await),
                };
                let drains = drains(client, view.status.backends.iter().map(|backend| &backend.zero)).await?;
                let filter = [("service", Some(name.clone())), ("limit", Some("1".to_owned()))];
                // A kernel that cannot list connections can still be told of.
                let found = client.get(&with_query("/v1/connections", &filter)).await.ok();
                service(&view, &idle_close(&view, found.as_ref()), &drains)
            }
            Named::Node(name) => {
                let view: NodeView = client.get(&format!("/v1/nodes/{}", encode(&name))).await?;
                node(&view, &drains(client, [&view.status.zero]).await?)
            }
            Named::Backend { service, backend: name } => {
                let path = format!("/v1/services/{}/backends/{}", encode(&service), encode(&name));
                let view: BackendView = client.get(&path).await?;
                backend(&view, &drains(client, [&view.status.zero]).await?)
            }
        };
        output::print(&text)
    }
}

/// Adds to the failure how to show a node or operation of this name.
async fn hint(client: &Client, name: &str, failure: Failure) -> Failure {
    let Failure::Refused(mut problem) = failure else { return failure };
    if problem.status == 404 {
        for (collection, verb) in [("nodes", "describe node/"), ("operations", "get operations ")] {
            if client.get::<Value>(&format!("/v1/{collection}/{}", encode(name))).await.is_ok() {
                problem.detail += &format!(": try `{}`", client.verb(&format!("{verb}{name}")));
            }
        }
    }
    Failure::Refused(problem)
}

/// The drain that an operation reports on, in words; `None`: the operation is no longer kept.
///
/// # Errors
/// When nobody answers.
pub async fn drain(client: &Client, operation: &str) -> Result<Option<String>, Failure> {
    match client.get::<Operation>(&format!("/v1/operations/{}", encode(operation))).await {
        Ok(operation) => Ok(Some(operation.sentence())),
        Err(Failure::Refused(problem)) if problem.status == 404 => Ok(None),
        Err(failure) => Err(failure),
    }
}

async fn drains<'a>(
    client: &Client,
    zeros: impl IntoIterator<Item = &'a Option<ZeroStatus>>,
) -> Result<Drains, Failure> {
    let mut found = Drains::new();
    for id in zeros.into_iter().filter_map(|zero| zero.as_ref()?.drain.as_ref()) {
        if !found.contains_key(id)
            && let Some(text) = drain(client, id).await?
        {
            found.insert(id.clone(), text);
        }
    }
    Ok(found)
}

/// Of the drain of a zero, if it has one.
fn drained<'a>(zero: &ZeroStatus, drains: &'a Drains) -> Option<&'a String> {
    drains.get(zero.drain.as_ref()?)
}

/// What a drain does to idle connections of a service, and which of those that are open it takes for sessions.
fn idle_close(view: &ServiceView, found: Option<&Connections>) -> String {
    let never = "never: the service carries streams";
    let after = view
        .spec
        .idle_close
        .map_or_else(|| "when idle".to_owned(), |quiet| format!("after {} of quiet", quiet::text(quiet)));
    match view.spec.protocol {
        Some(ServiceProtocol::Stream) => return never.to_owned(),
        Some(ServiceProtocol::Request) => return after,
        None => {}
    }
    let Some(Connections { total, sessions, .. }) = found else { return format!("{after}, but for sessions") };
    let kinds: Vec<String> = sessions.iter().map(|(kind, count)| format!("{count} {}", get::name(kind))).collect();
    let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
    let count: usize = sessions.values().sum();
    format!("{after}, but for sessions: {count} of {}{kinds}", plural(*total as u64, "connection"))
}

fn service(view: &ServiceView, idle_close: &str, drains: &Drains) -> String {
    let ServiceView { metadata, spec, status, .. } = view;
    let list = |items: Vec<String>| items.join(", ");
    let mut text_so_far = fields(&[
        ("Service", metadata.name.to_string()),
        ("Labels", list(metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect())),
        ("Frontends", list(spec.frontends.iter().map(ToString::to_string).collect())),
        ("Balance", get::name(&spec.balance)),
        ("Without open backend", get::name(&spec.on_no_backend)),
        ("Kept open by a zero", format!("at least {} %", spec.min_ready_percent)),
        ("Closed by a drain", idle_close.to_owned()),
        ("From", status.origin.text()),
        ("Generation", format!("{} (in the kernel: {})", status.generation, status.observed_generation)),
        ("Table", format!("{}, current since {}", plural(status.slots.into(), "slot"), ago(status.programmed_at))),
        ("Rounding error", percentage(status.share_error)),
        ("Health", health_of(status)),
        ("Connections", format!("{} active, {} new", status.active_connections, status.new_connections)),
        ("Failures", format!("{} to backends, {} found none open", status.connect_failures, status.no_backend)),
    ]);
    if !spec.groups.is_empty() {
        let mut table = TextTable::new(&["GROUP", "WEIGHT", "DESIRED", "PROGRAMMED", "OBSERVED", ""]);
        for group in &status.groups {
            table.row([
                text(&group.name),
                number(group.weight),
                percent(Some(group.desired_share)),
                percent(Some(group.programmed_share)),
                percent(group.observed_share),
                text(if group.spilled { "no open backend: its share goes to the others" } else { " " }),
            ]);
        }
        text_so_far += &format!("\n{}", table.text());
    }
    let mut table = TextTable::new(&[
        "BACKEND",
        "ADDRESS",
        "NODE",
        "GROUP",
        "STATE",
        "WEIGHT",
        "DESIRED",
        "PROGRAMMED",
        "OBSERVED",
        "95 %",
        "ACTIVE",
        "NEW",
        "FAILED",
    ])
    .sparing(&["95 %", "ADDRESS", "DESIRED", "GROUP", "NODE", "PROGRAMMED"]);
    for (document, status) in spec.backends.iter().zip(&status.backends) {
        table.row([
            text(&document.name),
            text(document.address),
            maybe(document.node.as_ref()),
            maybe(document.group.as_ref()),
            state(status.state),
            number(status.weight),
            percent(Some(status.desired_share)),
            percent(Some(status.programmed_share)),
            percent(status.observed_share),
            number(interval(status)),
            number(status.active_connections),
            number(status.new_connections),
            fault(status.connect_failures),
        ]);
    }
    text_so_far += &format!("\n{}", table.text());
    let has_more =
        |backend: &BackendStatus| backend.zero.is_some() || backend.health.is_some() || backend.warming.is_some();
    if status.backends.iter().any(has_more) {
        text_so_far.push('\n');
    }
    for backend in &status.backends {
        for line in fitness(backend) {
            text_so_far += &output::printable(&format!("{}: {line}", backend.name));
            text_so_far.push('\n');
        }
        if let Some(zero) = &backend.zero {
            let drain = drained(zero, drains).map(|drain| format!("; drain {drain}")).unwrap_or_default();
            text_so_far += &output::printable(&format!("{}: {}{drain}", backend.name, zeroed(zero)));
            text_so_far.push('\n');
        }
    }
    if let Some(warmup) = &spec.warmup {
        text_so_far += &format!("\nWarm-up: part of the weight over time\n{}", curve::plot(warmup, None));
    }
    text_so_far
}

fn node(view: &NodeView, drains: &Drains) -> String {
    let NodeView { metadata, status, .. } = view;
    let labels: Vec<_> = metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut lines = vec![
        ("Node", metadata.name.to_string()),
        ("State", status.state.name().to_owned()),
        ("Labels", labels.join(", ")),
        ("Declared", if status.declared { "by a document" } else { "by the backends that name it" }.to_owned()),
        ("Serves", format!("{} of {}", count(status.backends, "backend"), count(status.services, "service"))),
        ("Health", format!("{} not healthy", count(status.unhealthy, "backend"))),
        ("Connections", format!("{} active, {} new", status.active_connections, status.new_connections)),
        ("Last new connection", ago(status.last_new_connection_at)),
        ("Failures", status.connect_failures.to_string()),
    ];
    if let Some(zero) = &status.zero {
        lines.push(("Zero", zeroed(zero)));
        lines.extend(drained(zero, drains).map(|drain| ("Drain", drain.clone())));
    }
    fields(&lines)
}

fn backend(view: &BackendView, drains: &Drains) -> String {
    let status = &view.status;
    let optional = |name: &Option<crate::model::Name>| name.as_ref().map(ToString::to_string).unwrap_or_default();
    let mut lines = vec![
        ("Backend", view.name.to_string()),
        ("Address", view.address.to_string()),
        ("Node", optional(&view.node)),
        ("Group", optional(&view.group)),
        ("State", status.state.name().to_owned()),
        ("Weight", format!("{} (effective: {})", status.weight, status.effective_weight)),
        ("Desired share", percentage(status.desired_share)),
        ("Programmed share", percentage(status.programmed_share)),
        (
            "Observed share",
            match status.observed_share {
                Some(share) => {
                    let expected = status.expected_share.map(percentage).unwrap_or_default();
                    format!("{} (95 %: {}; by the tables: {expected})", percentage(share), interval(status))
                }
                None => "nothing chosen yet since the table became current".to_owned(),
            },
        ),
        (
            "Connections",
            format!(
                "{} active, {} connecting, {} new",
                status.active_connections, status.connecting, status.new_connections
            ),
        ),
        ("Last new connection", ago(status.last_new_connection_at)),
        ("Failures", status.connect_failures.to_string()),
    ];
    if let Some(zero) = &status.zero {
        lines.push(("Zero", zeroed(zero)));
        lines.extend(drained(zero, drains).map(|drain| ("Drain", drain.clone())));
    }
    let fitness = fitness(status);
    lines.extend(fitness.iter().map(|line| ("Health", output::printable(line))));
    let mut text = fields(&lines);
    if let (Some(warming), Some(warmup)) = (&status.warming, &view.warmup) {
        let elapsed = Timestamp::now().duration_since(warming.since).try_into().ok();
        text += &format!("\nWarm-up: part of the weight over time\n{}", curve::plot(warmup, elapsed));
    }
    text
}

/// How many are healthy.
fn health_of(status: &ServiceStatus) -> String {
    let all = status.backends.len();
    let healthy = all.saturating_sub(status.unhealthy as usize);
    let panic = if status.panic { "; so few that all of them serve (panic)" } else { "" };
    format!("{healthy} of {} healthy{panic}", count(all, "backend"))
}

/// What is said against a backend, and how far its warm-up is.
fn fitness(status: &BackendStatus) -> Vec<String> {
    let reason = |reason: &Reason| {
        let since = reason.since.map(|since| format!(" since {since:.0}")).unwrap_or_default();
        let until = reason.until.map(|until| format!(", until {until:.0}")).unwrap_or_default();
        let stage = match reason.stage {
            Some(Stage::Out) => "ejected",
            Some(Stage::Trial) => "on trial",
            None if reason.holds => "not ready",
            None => "ready",
        };
        format!("{stage} by {}{since}{until}: {}", reason.author.name(), reason.message)
    };
    let reasons = status.health.iter().flat_map(|health| &health.reasons).map(reason);
    let warming = status.warming.as_ref().map(|warming| {
        format!("warming up: {:.0} % of its weight, all of it at {:.0}", warming.part * 100.0, warming.warm_at)
    });
    reasons.chain(warming).collect()
}

fn count(number: usize, noun: &str) -> String {
    plural(u64::try_from(number).unwrap_or(u64::MAX), noun)
}

fn interval(status: &BackendStatus) -> String {
    match status.observed_share {
        Some(_) => format!("{:.1}-{:.1} %", status.confidence95[0] * 100.0, status.confidence95[1] * 100.0),
        None => "-".to_owned(),
    }
}

/// One sentence about a zero.
pub fn zeroed(zero: &ZeroStatus) -> String {
    let reason = if zero.reason.is_empty() { String::new() } else { format!(" ({})", zero.reason) };
    let expires = zero.expires_at.map(|at| format!(", until {at:.0}")).unwrap_or_default();
    let unproven = zero.unproven.as_ref().map(|why| format!(", which is not proven: {why}")).unwrap_or_default();
    format!(
        "{} zeroed by {}{reason} at {:.0}{expires}; new connections since: {}{unproven}",
        zero.zeroed, zero.owner, zero.zeroed_at, zero.new_connections_since_zero
    )
}
