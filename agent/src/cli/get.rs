//! `sluice get`: services, nodes, operations.

use clap::Args;
use serde_json::{Value, json};

use super::{
    candidates,
    client::{Client, encode},
    failure::Failure,
    output::{self, Output, TextTable, ago, fault, maybe, number, percent, state, text},
    watch,
};
use crate::{
    http::views::{List, NodeView, ServiceView},
    view::operations::Operation,
};

/// List services, nodes or operations, or show one of them
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice get\n  sluice get services shop -o yaml\n  sluice get service/shop\n  sluice get nodes --watch\n  sluice get nodes -o wide\n  sluice get operations\n  sluice get operations op-01795289999842813 -o yaml\n\n\
        Operations are the drains, and the zeros and restores since the agent started.\n\
        Columns that do not fit the terminal are left out; -o wide prints all of them, and more."
)]
pub struct GetArguments {
    /// services, nodes or operations, or one of them, as in service/shop
    #[arg(value_parser = selection, default_value = "services", value_name = "KIND[/NAME]", add = candidates::selections())]
    kind: Selection,
    /// Of a service or node, or the id of an operation
    name: Option<String>,
    /// Go on, and print again what changes
    #[arg(long, short)]
    watch: bool,
    #[command(flatten)]
    output: Output,
}

/// A kind, or one of it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Selection {
    collection: Collection,
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Collection {
    Services,
    Nodes,
    Operations,
}

impl Collection {
    fn read(kind: &str) -> Option<Self> {
        match kind {
            "services" | "service" | "svc" => Some(Self::Services),
            "nodes" | "node" => Some(Self::Nodes),
            "operations" | "operation" | "op" => Some(Self::Operations),
            _ => None,
        }
    }

    const fn path(self) -> &'static str {
        match self {
            Self::Services => "/v1/services",
            Self::Nodes => "/v1/nodes",
            Self::Operations => "/v1/operations",
        }
    }
}

fn selection(text: &str) -> Result<Selection, String> {
    let (kind, name) = text.split_once('/').map_or((text, None), |(kind, name)| (kind, Some(name.to_owned())));
    let collection = Collection::read(kind);
    let collection =
        collection.ok_or("write services, nodes or operations, or one of them, as in service/shop or node/node-1")?;
    Ok(Selection { collection, name })
}

impl GetArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let (kind, name) = self.selected()?;
        let path = match &name {
            Some(name) => format!("{}/{}", kind.path(), encode(name)),
            None => kind.path().to_owned(),
        };
        let wide = self.output.is_wide();
        let shown = |items: Value| table(kind, items, wide);
        if self.watch {
            return watch::watch(client, &path, self.output, shown).await;
        }
        let value: Value = client.get(&path).await?;
        if self.output.print(&value)? {
            return Ok(());
        }
        let items = if name.is_some() { json!({ "items": [value] }) } else { value };
        let notes = if kind == Collection::Services { deviations(&read(items.clone())?) } else { Vec::new() };
        let table = shown(items)?;
        if table.is_empty() {
            output::note(nothing(kind));
            return Ok(());
        }
        output::print(&table.text())?;
        notes.iter().for_each(output::note);
        Ok(())
    }

    /// Which kind, and which of it.
    fn selected(&self) -> Result<(Collection, Option<String>), Failure> {
        let Selection { collection, name } = &self.kind;
        if name.is_some() && self.name.is_some() {
            return Err(Failure::Usage("there are two names: leave one of them out".to_owned()));
        }
        // The kind may be written again, as in `get services service/shop`.
        let again = |name: &String| match selection(name) {
            Ok(Selection { collection: kind, name: Some(name) }) if kind == *collection => name,
            _ => name.clone(),
        };
        Ok((*collection, name.clone().or_else(|| self.name.as_ref().map(again))))
    }
}

/// The table of a collection.
fn table(kind: Collection, items: Value, wide: bool) -> Result<TextTable, Failure> {
    Ok(match kind {
        Collection::Services => services(&read(items)?, wide),
        Collection::Nodes => nodes(&read(items)?, wide),
        Collection::Operations => operations(&read(items)?, wide),
    })
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> Result<List<T>, Failure> {
    serde_json::from_value(value).map_err(|error| {
        let advice = "the agent's answer cannot be understood: are agent and client of the same version?";
        anyhow::Error::new(error).context(advice).into()
    })
}

fn nothing(kind: Collection) -> &'static str {
    match kind {
        Collection::Services => "No services yet: make one with `sluice apply -f FILE`.",
        Collection::Nodes => "No nodes yet: a node exists as soon as a backend names it.",
        Collection::Operations => "No operations since the agent started.",
    }
}

/// Services that are not what their files say.
fn deviations(list: &List<ServiceView>) -> Vec<String> {
    let note = |service: &ServiceView| {
        let (name, origin) = (&service.metadata.name, &service.status.origin);
        let file = origin.file.as_ref()?;
        match &origin.problem {
            Some(problem) => Some(format!("{name}: {file} is out of force: {problem}")),
            None if origin.edited => Some(format!("{name}: changed over the API since {file} was applied")),
            None => None,
        }
    };
    list.items.iter().filter_map(note).collect()
}

fn services(list: &List<ServiceView>, wide: bool) -> TextTable {
    let mut header = vec!["NAME", "FRONTENDS", "BALANCE", "OPEN", "ACTIVE", "NEW", "FAILED"];
    if wide {
        header.extend(["NO-BACKEND", "GROUPS", "SLOTS", "SHARE-ERROR", "GENERATION", "FROM", "LABELS"]);
    }
    let spare: &[_] = if wide { &[] } else { &["BALANCE", "OPEN", "FRONTENDS"] };
    let mut table = TextTable::new(&header).sparing(spare);
    for service in &list.items {
        let status = &service.status;
        let open = status.backends.iter().filter(|backend| backend.programmed_share > 0.0).count();
        let mut cells = vec![
            text(&service.metadata.name),
            text(shorten(&service.spec.frontends, wide)),
            text(name(&service.spec.balance)),
            number(format!("{open}/{}", status.backends.len())),
            number(status.active_connections),
            number(status.new_connections),
            fault(status.connect_failures),
        ];
        if wide {
            let groups: Vec<_> =
                service.spec.groups.iter().map(|group| format!("{}={}", group.name, group.weight)).collect();
            let labels: Vec<_> = service.metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            cells.extend([
                fault(status.no_backend),
                text(groups.join(",")),
                number(status.slots),
                percent(Some(status.share_error)),
                number(format!("{}/{}", status.observed_generation, status.generation)),
                text(status.origin.text()),
                text(labels.join(",")),
            ]);
        }
        table.row(cells);
    }
    table
}

fn nodes(list: &List<NodeView>, wide: bool) -> TextTable {
    let mut header = vec!["NAME", "STATE", "SERVICES", "BACKENDS", "ACTIVE", "NEW", "FAILED", "LAST-NEW"];
    if wide {
        header.extend(["NEW-SINCE-ZERO", "OWNER", "REASON", "EXPIRES", "DRAIN", "LABELS"]);
    }
    let spare: &[_] = if wide { &[] } else { &["SERVICES", "BACKENDS", "LAST-NEW"] };
    let mut table = TextTable::new(&header).sparing(spare);
    for node in &list.items {
        let status = &node.status;
        let mut cells = vec![
            text(&node.metadata.name),
            state(status.state),
            number(status.services),
            number(status.backends),
            number(status.active_connections),
            number(status.new_connections),
            fault(status.connect_failures),
            text(ago(status.last_new_connection_at)),
        ];
        if wide {
            let zero = status.zero.as_ref();
            let labels: Vec<_> = node.metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            cells.extend([
                zero.map_or(text(""), |zero| fault(zero.new_connections_since_zero)),
                maybe(zero.map(|zero| &zero.owner)),
                maybe(zero.map(|zero| &zero.reason)),
                maybe(zero.and_then(|zero| zero.expires_at).map(|at| format!("{at:.0}"))),
                maybe(zero.and_then(|zero| zero.drain.as_ref())),
                text(labels.join(",")),
            ]);
        }
        table.row(cells);
    }
    table
}

fn operations(list: &List<Operation>, wide: bool) -> TextTable {
    let header = ["ID", "KIND", "TARGET", "PHASE", "STARTED", "REMAINING", "MESSAGE"];
    let spare: &[_] = if wide { &[] } else { &["MESSAGE", "STARTED", "KIND"] };
    let mut table = TextTable::new(&header).sparing(spare);
    for operation in &list.items {
        table.row([
            text(&operation.id),
            text(name(&operation.kind)),
            text(&operation.target),
            text(operation.phase.name()),
            text(ago(Some(operation.started_at))),
            number(operation.remaining.total),
            text(&operation.message),
        ]);
    }
    table
}

/// The name of a value on the wire.
pub fn name(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(name)) => name,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

/// The first few of many, unless all are wanted.
fn shorten(items: &[impl ToString], all: bool) -> String {
    const SHOWN: usize = 2;
    let texts: Vec<_> = items.iter().map(ToString::to_string).collect();
    match texts.len() {
        more if !all && more > SHOWN => format!("{} +{}", texts[..SHOWN].join(","), more - SHOWN),
        _ => texts.join(","),
    }
}
