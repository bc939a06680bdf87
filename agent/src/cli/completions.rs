//! `sluice completions`: what a shell needs to complete this command line, names included.

use anyhow::{Context, anyhow};
use clap::{Args, Command, CommandFactory};
use clap_complete::{
    Shell,
    env::{CompleteEnv, Shells},
};

use super::{Cli, failure::Failure, output};

/// The variable by which a shell asks this program for what could come next.
const VARIABLE: &str = "SLUICE_COMPLETE";

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  source <(sluice completions bash)\n  sluice completions fish > ~/.config/fish/completions/sluice.fish\n\n\
        Names of services, backends, groups and nodes are asked of the agent while you type. The script and this program must be of the \
        same version: print it anew after an upgrade."
)]
pub struct CompletionsArguments {
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArguments {
    pub fn run(self) -> Result<(), Failure> {
        let name = self.shell.to_string();
        let shells = Shells::builtins();
        let shell = shells.completer(&name).ok_or_else(|| anyhow!("there is no script for {name}"))?;
        let mut script = Vec::new();
        shell.write_registration(VARIABLE, "sluice", "sluice", "sluice", &mut script).context("writing the script")?;
        output::print(&String::from_utf8_lossy(&script))
    }
}

/// Answers a shell that asks what could come next, and ends the process then.
pub fn answer_shell() {
    CompleteEnv::with_factory(command).var(VARIABLE).complete();
}

fn command() -> Command {
    Cli::command()
}
