//! `sluice delete`: take a service or node out of the configuration.

use axum::http::Method;
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, encode},
    failure::Failure,
    output,
};

/// Remove a service, or forget a node
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice delete shop\n  sluice delete node/node-1\n\nConnections of a service that is removed go on; new ones are steered no longer."
)]
pub struct DeleteArguments {
    /// SERVICE or node/NODE
    name: String,
    /// Show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
}

impl DeleteArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let (object, path) = match self.name.split_once('/') {
            None | Some(("service", _)) => {
                let name = self.name.strip_prefix("service/").unwrap_or(&self.name);
                (format!("service/{name}"), format!("/v1/services/{}", encode(name)))
            }
            Some(("node", name)) => (self.name.clone(), format!("/v1/nodes/{}", encode(name))),
            Some((service, backend)) => {
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
