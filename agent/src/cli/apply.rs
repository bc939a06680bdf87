//! `sluice apply`: documents become what is steered.

use axum::http::Method;
use clap::Args;

use super::{client::Client, failure::Failure, files::Sources, output, zero::insist};
use crate::http::views::ApplyView;

/// Make or replace what files describe, all or nothing
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sluice apply -f shop.yaml\n  sluice apply -f /etc/sluice/services\n  cat shop.yaml | sluice apply -f -\n  \
        sluice get services -o yaml | sluice apply -f -\n  sluice apply -f /etc/sluice/services --prune --dry-run\n\n\
        What it does is judged by what comes of it: two services may exchange their frontends in one apply."
)]
pub struct ApplyArguments {
    #[command(flatten)]
    sources: Sources,
    #[command(flatten)]
    terms: ApplyTerms,
    /// Validate and show what would happen; change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: output::Output,
}

/// What is sent besides the documents.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct ApplyTerms {
    /// Remove the services that are not in the files, but for those that the agent takes from files of its own
    #[arg(long)]
    prune: bool,
    /// Do it even if a service is left without enough open capacity
    #[arg(long)]
    force: bool,
    /// With --prune: even if more goes than the agent's --shrink-limit
    #[arg(long)]
    accept_shrink: bool,
}

impl ApplyTerms {
    /// For a look at what would happen: nothing stands in its way.
    pub fn look(prune: bool) -> Self {
        Self { prune, force: true, accept_shrink: true }
    }
}

impl ApplyArguments {
    pub async fn run(self, client: &Client) -> Result<(), Failure> {
        let view = send(client, &self.sources, self.terms, self.dry_run).await.map_err(insist)?;
        for item in view.items.iter().filter(|item| !item.warnings.is_empty()) {
            output::note(format!("warning: {}: {}", item.object, item.warnings.join("; ")));
        }
        if self.output.print(&view)? {
            return Ok(());
        }
        let would = if view.dry_run { " (dry run)" } else { "" };
        let mut text: String =
            view.items.iter().map(|item| format!("{} {}{would}\n", item.object, item.effect.name())).collect();
        if view.dry_run && self.output.is_wide() {
            text.extend(view.plan.iter().map(|step| format!("  {step}\n")));
        }
        output::print(&text)
    }
}

/// Sends all documents as one change.
///
/// # Errors
/// When a document is wrong, or the agent refuses.
pub async fn send(client: &Client, sources: &Sources, terms: ApplyTerms, dry_run: bool) -> Result<ApplyView, Failure> {
    let (body, places) = sources.read()?;
    let ApplyTerms { prune, force, accept_shrink } = terms;
    let path = format!("/v1/apply?dryRun={dry_run}&prune={prune}&force={force}&acceptShrink={accept_shrink}");
    let answer = client.call(Method::POST, &path, Some(("application/json", body.into()))).await;
    answer.map_err(|failure| match failure {
        // The agent knows the number of the document; only this client knows its file.
        Failure::Refused(mut problem) => {
            let number = problem.document.unwrap_or(1);
            if let Some(place) = places.get(number - 1).filter(|_| problem.document.is_some() || places.len() == 1) {
                let detail = problem.detail.trim_start_matches(&format!("document {number}: ")).to_owned();
                problem.detail = format!("{place}: {detail}");
            }
            Failure::Refused(problem)
        }
        other => other,
    })
}
