//! `sluice man`: the manual pages, made from the same words as --help.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::{Cli, failure::Failure, output};

/// Print a manual page, or write all of them
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  sluice man drain | man -l -\n  sluice man --dir /usr/local/share/man/man1\n\n\
        The pages are sluice(1) and one for each verb, such as sluice-drain(1).")]
pub struct ManArguments {
    /// The page of this verb [default: that of sluice itself]
    verb: Option<String>,
    /// Write all pages into this directory
    #[arg(long, value_name = "DIR", conflicts_with = "verb")]
    dir: Option<PathBuf>,
}

impl ManArguments {
    pub fn run(self) -> Result<(), Failure> {
        if let Some(dir) = &self.dir {
            let writing = || format!("writing manual pages into {}", dir.display());
            return Ok(clap_mangen::generate_to(Cli::command(), dir).with_context(writing)?);
        }
        let mut sluice = Cli::command().disable_help_subcommand(true);
        sluice.build();
        let command = match &self.verb {
            None => sluice,
            Some(verb) => {
                let found = sluice.find_subcommand(verb).filter(|found| !found.is_hide_set()).cloned();
                found.ok_or_else(|| Failure::Usage(format!("there is no verb {verb}: `sluice --help` lists them")))?
            }
        };
        let mut page = Vec::new();
        Man::new(command).render(&mut page).context("writing a manual page")?;
        output::print(&String::from_utf8_lossy(&page))
    }
}
