//! `sluice delete`: take a service or node out of the configuration.

use axum::http::Method;
use clap::Args;
use serde_json::Value;

use super::{
    candidates,
    client::{Client, encode},
    failure::Failure,
    names::Named,
    output,
};

/// Remove a service, or forget a node
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice delete shop\n  sluice delete node/node-1\n\nConnections of a service that is removed go on; new ones are steered no longer."
)]
pub struct DeleteArguments {
    /// SERVICE, service/SERVICE or node/NODE
    #[arg(add = candidates::named())]
    name: String,
    /// Show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
}

impl DeleteArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let (object, path) = match Named::read(&self.name) {
            Named::Service(name) => (format!("service/{name}"), format!("/v1/services/{}", encode(&name))),
            Named::Node(name) => (format!("node/{name}"), format!("/v1/nodes/{}", encode(&name))),
            Named::Backend { service, backend } => {
                let advice = format!(
                    "a backend leaves with its service's document: take {backend} out of {service} and apply it, or `sluice zero {service}/{backend}`"
                );
                return Err(Failure::Usage(advice));
            }
        };
        let (query, would) = if self.dry_run { ("?dryRun=true", " (dry run)") } else { ("", "") };
        let _: Value = client.call(Method::DELETE, &format!("{path}{query}"), None).await?;
        output::print(&format!("{object} deleted{would}\n"))
    }
}
