//! `sluice connections`: steered connections with their processes.

use anyhow::anyhow;
use clap::Args;
use jiff::SignedDuration;
use serde_json::Value;

use super::{
    candidates,
    client::{Client, encode, with_query},
    failure::Failure,
    names,
    output::{self, Output, TextTable, duration, maybe, number, text},
};
use crate::cli::get;
use crate::http::connections::{Connections as View, MOST};
use crate::http::views::List;
use crate::http::views::ServiceView;
use crate::model::words::{plural, whole_number};

/// List steered connections with their processes
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice connections --node node-1\n  sluice connections --service shop --backend n1 -o wide"
)]
pub struct ConnectionsArguments {
    #[arg(long, value_parser = names::service, add = candidates::services())]
    service: Option<String>,
    #[arg(long, add = candidates::backends())]
    backend: Option<String>,
    #[arg(long, value_parser = names::node, add = candidates::nodes())]
    node: Option<String>,
    /// Such as established, synSent or closeWait
    #[arg(long)]
    state: Option<String>,
    /// Most connections to list, 10000 at most
    #[arg(long, default_value_t = 1000, value_parser = whole_number::<usize>)]
    limit: usize,
    #[command(flatten)]
    output: Output,
}

impl ConnectionsArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let path = with_query(
            "/v1/connections",
            &[
                ("service", self.service.clone()),
                ("backend", self.backend.clone()),
                ("node", self.node.clone()),
                ("state", self.state.clone()),
                ("limit", Some(self.limit.to_string())),
            ],
        );
        let view: View = client.get(&path).await?;
        if view.total == 0 {
            self.check(client).await?;
        }
        if self.output.print(&view)? {
            return Ok(());
        }
        output::print(&table(&view, self.output.is_wide()).text())?;
        if view.total > view.items.len() {
            output::note(format!(
                "{} of {} connections: --limit lists more, up to {MOST}",
                view.items.len(),
                view.total
            ));
        }
        if view.flows > 0 {
            output::note(format!("and {} of datagrams, of unconnected sockets", plural(view.flows, "flow")));
        }
        Ok(())
    }

    /// Fails for a service, backend or node that does not exist: an empty list would hide that.
    async fn check(&self, client: &Client) -> Result<(), Failure> {
        if let Some(node) = &self.node {
            client.get::<Value>(&format!("/v1/nodes/{}", encode(node))).await?;
        }
        match (&self.service, &self.backend) {
            (Some(service), Some(backend)) => {
                let path = format!("/v1/services/{}/backends/{}", encode(service), encode(backend));
                client.get::<Value>(&path).await.map(drop)
            }
            (Some(service), None) => client.get::<Value>(&format!("/v1/services/{}", encode(service))).await.map(drop),
            (None, Some(backend)) => {
                let services: List<ServiceView> = client.get("/v1/services").await?;
                let mut backends = services.items.iter().flat_map(|service| &service.spec.backends);
                if backends.any(|held| held.name == backend.as_str()) {
                    return Ok(());
                }
                Err(anyhow!("no service has a backend {backend}").into())
            }
            (None, None) => Ok(()),
        }
    }
}

fn table(view: &View, wide: bool) -> TextTable {
    let mut header = vec!["SERVICE", "BACKEND", "NODE", "STATE", "PID", "COMMAND", "AGE", "IDLE", "IN-FLIGHT"];
    if wide {
        header.extend([
            "PROTOCOL",
            "SESSION",
            "FRONTEND",
            "LOCAL",
            "BACKEND-ADDRESS",
            "SENT",
            "RECEIVED",
            "NETNS",
            "CGROUP",
            "POD",
        ]);
    }
    let spare: &[_] = if wide { &[] } else { &["NODE", "STATE", "COMMAND"] };
    let mut table = TextTable::new(&header).sparing(spare);
    for connection in &view.items {
        let mut cells = vec![
            maybe(connection.service.as_ref()),
            maybe(connection.backend.as_ref()),
            maybe(connection.node.as_ref()),
            text(get::name(&connection.state)),
            number(connection.pid),
            maybe(connection.command.as_ref()),
            number(seconds(connection.age_seconds)),
            number(connection.idle_seconds.map_or("-".to_owned(), seconds)),
            text(connection.in_flight.map_or("-", |flying| if flying { "yes" } else { "no" })),
        ];
        if wide {
            cells.extend([
                text(&connection.protocol),
                maybe(connection.session.as_ref().map(get::name)),
                text(connection.frontend),
                text(connection.local_address),
                text(connection.backend_address),
                number(connection.bytes_sent),
                number(connection.bytes_received),
                number(connection.netns),
                maybe(connection.cgroup.as_ref()),
                maybe(connection.pod.as_ref()),
            ]);
        }
        table.row(cells);
    }
    table
}

fn seconds(seconds: f64) -> String {
    duration(SignedDuration::try_from_secs_f64(seconds).unwrap_or_default())
}
