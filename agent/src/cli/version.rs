//! `sluice version`: the version of this program and of the kernel tables.

use clap::Args;
use serde_json::json;
use sluice_common::ABI_VERSION;

use super::{
    failure::Failure,
    output::{self, Output},
};

/// Print the version
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sluice version -o json")]
pub struct VersionArguments {
    #[command(flatten)]
    output: Output,
}

impl VersionArguments {
    pub fn run(self) -> Result<(), Failure> {
        let version = env!("CARGO_PKG_VERSION");
        if self.output.print(&json!({ "version": version, "abiVersion": ABI_VERSION }))? {
            return Ok(());
        }
        output::print(&format!("sluice {version} (kernel tables: version {ABI_VERSION})\n"))
    }
}
