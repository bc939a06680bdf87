//! `sluice weight`: change the weight of one backend, or of one group.

use clap::Args;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    candidates,
    client::{Client, encode},
    failure::Failure,
    names, output,
    zero::{self, insist},
};
use crate::{
    http::views::BackendView,
    model::{Target, document::MAX_WEIGHT},
    view::status::GroupStatus,
};

/// Change the weight of one backend, or of one group
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice weight shop/n1 5                  n1 gets 5 parts; the other backends of its group keep theirs\n  \
        sluice weight shop --group canary 10     the group gets 10 parts; the other groups of shop keep theirs"
)]
pub struct WeightArguments {
    /// SERVICE/BACKEND, or with --group SERVICE
    #[arg(value_name = "SERVICE/BACKEND|SERVICE", add = candidates::named())]
    of: String,
    /// 0 to 1000000; 0 takes no new connections
    #[arg(allow_negative_numbers = true, value_parser = weight)]
    weight: u32,
    /// The group of the service whose weight it is
    #[arg(long, add = candidates::groups())]
    group: Option<String>,
    /// Do it even if the service is left without enough open capacity
    #[arg(long)]
    force: bool,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

impl WeightArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        match &self.group {
            Some(group) => {
                let service = names::service_name(&self.of);
                let path = format!("/v1/services/{}/groups/{}", encode(service), encode(group));
                let Some(status) = self.change::<GroupStatus>(client, &path).await? else { return Ok(()) };
                let share = output::percentage(status.programmed_share);
                let spilled = if status.spilled { "; no backend of it is open" } else { "" };
                let weight = self.weight;
                output::print(&format!(
                    "{service} group {group} weight {weight}: {share} of the connections{spilled}\n"
                ))
            }
            None => {
                let backend = self.backend()?;
                let Some(view) = self.change::<BackendView>(client, &zero::path(&backend, "")).await? else {
                    return Ok(());
                };
                let (weight, status) = (self.weight, &view.status);
                let share = output::percentage(status.programmed_share);
                let zeroed =
                    if status.zero.is_some() { "; it is zeroed and takes nothing until `sluice restore`" } else { "" };
                output::print(&format!("{backend} weight {weight}: {share} of the connections{zeroed}\n"))
            }
        }
    }

    /// Gives what is at `path` the weight. `None`: what came of it is printed already.
    async fn change<T: DeserializeOwned + serde::Serialize>(
        &self,
        client: &Client,
        path: &str,
    ) -> Result<Option<T>, Failure> {
        let asked = format!("{path}?dryRun={}&force={}", self.dry_run, self.force);
        let patch = json!({ "weight": self.weight });
        if self.dry_run {
            let plan: Value = client.patch(&asked, &patch).await.map_err(insist)?;
            output::print(&output::json(&plan)?)?;
            return Ok(None);
        }
        let view: T = client.patch(&asked, &patch).await.map_err(insist)?;
        Ok(if self.output.print(&view)? { None } else { Some(view) })
    }

    fn backend(&self) -> Result<Target, Failure> {
        match names::target(&self.of) {
            Ok(Target::Node(node)) => {
                Err(Failure::Usage(format!("node {node} has no weight of its own: name one backend, as in shop/n1")))
            }
            Ok(backend) => Ok(backend),
            Err(why) => Err(Failure::Usage(format!("{why}, or SERVICE with --group"))),
        }
    }
}

fn weight(text: &str) -> Result<u32, String> {
    let weight = text.parse().ok().filter(|weight| *weight <= MAX_WEIGHT);
    weight.ok_or_else(|| format!("write a whole number from 0 to {MAX_WEIGHT}"))
}
