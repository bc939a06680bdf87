//! `sluice completions`: what a shell needs to complete this command line.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, failure::Failure, output};

/// Print the completion script of a shell
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sluice completions bash > /etc/bash_completion.d/sluice")]
pub struct CompletionsArguments {
    #[arg(value_enum)]
    shell: Shell,
}

impl CompletionsArguments {
    pub fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "sluice", &mut script);
        output::print(&String::from_utf8_lossy(&script))
    }
}
