//! `sluice agent`: the settings of the daemon.

use std::path::PathBuf;

use clap::Args;

use super::{ConnectionOptions, failure::Failure};
use crate::settings::{Layer, Settings};

/// Run the agent of this host
#[derive(Debug, Args)]
#[command(
    long_about = "Run the agent of this host: load the eBPF programs, or take over those of an earlier agent, bring them \
        to what the store and the files ask for, and serve the API until SIGTERM or SIGINT. Steering goes on when the \
        agent ends; `sluice uninstall` ends it.\n\n\
        Every setting is a flag, an environment variable and a key of the --config file; a flag beats the environment, \
        which beats the file.",
    after_help = "Example:\n  sluice agent --apply /etc/sluice/services\n  \
        sluice agent --cgroup /sys/fs/cgroup/test --socket /tmp/s.sock --listen off --state-dir /tmp/s --bpffs /sys/fs/bpf/test"
)]
pub struct AgentArguments {
    /// TOML file with settings; its keys are the names of the flags
    #[arg(long, env = "SLUICE_CONFIG", hide_env_values = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Layer,
}

impl AgentArguments {
    /// What the daemon runs with.
    ///
    /// # Errors
    /// When a setting is wrong or the file cannot be read.
    pub(super) fn settings(self, connection: ConnectionOptions) -> Result<Settings, Failure> {
        let ConnectionOptions { socket, token_file, server: _, tls: _, timeout: _ } = connection;
        let flags = Layer { socket, token_file, ..self.settings };
        Ok(Settings::load(flags, self.config.as_ref())?)
    }
}
