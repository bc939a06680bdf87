//! `sluice check`: what this kernel offers, and what that enables.

use std::path::PathBuf;

use clap::Args;
use comfy_table::Color;
use serde_json::json;

use super::{
    failure::Failure,
    output::{self, Output, TextTable, fields, text},
};
use crate::{
    host::cgroups,
    kernel::{
        HookEntry,
        features::{self, FeatureCheck, Status},
        on_hooks,
    },
    settings,
};

/// Report what this kernel offers, and what that enables
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sluice check\n\nExit code 1 when something is missing without which the agent cannot start."
)]
pub struct CheckArguments {
    /// Where the pins would go
    #[arg(long, env = "SLUICE_BPFFS", hide_env_values = true, default_value = settings::BPFFS, value_name = "DIR")]
    bpffs: PathBuf,
    /// Cgroup whose hooks are looked at [default: the root of the hierarchy]
    #[arg(long, env = "SLUICE_CGROUP", hide_env_values = true, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

impl CheckArguments {
    pub fn run(self) -> Result<(), Failure> {
        let checks = features::report(&self.bpffs);
        let hooks = self.cgroup.map_or_else(cgroups::root, Ok).and_then(|cgroup| on_hooks(&cgroup, &self.bpffs));
        let items: Vec<_> = checks.iter().map(as_json).collect();
        let running: Vec<_> = hooks.iter().flatten().flat_map(|hook| (1..).zip(hook)).map(program_as_json).collect();
        if !self.output.print(&json!({ "items": items, "programs": running }))? {
            let mut table = TextTable::new(&["", "FEATURE", "ENABLES", "DETAIL"]);
            for check in &checks {
                let colour = match check.status {
                    Status::Ok => Color::Green,
                    Status::Degraded => Color::Yellow,
                    Status::Missing => Color::Red,
                };
                let status = text(name(check.status)).fg(colour);
                table.row([status, text(&check.feature), text(&check.enables), text(&check.detail)]);
            }
            output::print(&table.text())?;
            output::print(&format!("\n{}", neighbours(&hooks)))?;
        }
        if checks.iter().any(|check| check.status == Status::Missing) {
            return Err(anyhow::anyhow!("the agent cannot start here: what is missing is listed above").into());
        }
        Ok(())
    }
}

/// Who else is on the hooks, one line for each hook.
fn neighbours(hooks: &anyhow::Result<Vec<Vec<HookEntry>>>) -> String {
    let hooks = match hooks {
        Ok(hooks) => hooks,
        Err(error) => return format!("Other programs on the same hooks cannot be listed: {error:#}\n"),
    };
    let shared = hooks.iter().filter(|hook| hook.iter().any(|entry| !entry.is_ours));
    let line = |hook: &Vec<HookEntry>| {
        let name = |entry: &HookEntry| match (entry.is_ours, entry.name.as_str()) {
            (true, _) => format!("Sluice (id {})", entry.id),
            (false, "") => format!("a program without a name (id {})", entry.id),
            (false, name) => format!("{name} (id {})", entry.id),
        };
        let names: Vec<_> = hook.iter().map(name).collect();
        (hook.first().map_or("", |entry| entry.program.name()), names.join(", then "))
    };
    let lines: Vec<_> = shared.map(line).collect();
    match lines.as_slice() {
        [] => "No other program is on the same hooks.\n".to_owned(),
        lines => format!("Other programs on the same hooks, in the order in which they run:\n{}", fields(lines)),
    }
}

fn program_as_json((order, entry): (u32, &HookEntry)) -> serde_json::Value {
    json!({
        "hook": entry.program.name(),
        "order": order,
        "name": entry.name,
        "id": entry.id,
        "ours": entry.is_ours,
    })
}

fn as_json(check: &FeatureCheck) -> serde_json::Value {
    json!({
        "feature": check.feature,
        "enables": check.enables,
        "status": name(check.status),
        "detail": check.detail,
    })
}

const fn name(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}
