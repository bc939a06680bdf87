//! The command line: one file per verb. `sluice agent` is the daemon; every other verb is a client of its API.
//! A verb returns, and only here does a result become an exit code.

mod accept_shrink;
mod agent;
mod apply;
mod candidates;
mod check;
mod client;
mod completions;
mod connections;
mod curve;
mod delete;
mod describe;
mod diff;
mod drain;
mod events;
mod explain;
mod failure;
mod files;
mod follow;
mod get;
mod history;
mod man;
mod monitor;
mod names;
mod openapi;
mod output;
mod ready;
mod restore;
mod tls;
mod top;
mod uninstall;
mod version;
mod wait;
mod watch;
mod weight;
mod zero;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind, parser::ValueSource};
use jiff::SignedDuration;

use crate::settings::Settings;
use client::Client;
pub use failure::Failure;
use tls::TlsOptions;

/// Steers connections to weighted backends inside the Linux kernel.
///
/// Applications connect to the addresses they know; eBPF programs choose a backend by weight at connect(). `sluice agent`
/// runs on each host, every other verb asks it.
#[derive(Debug, Parser)]
#[command(
    name = "sluice",
    version,
    max_term_width = 110,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 timed out, 4 conflict (somebody else changed it, or something stands in the way)\n\n\
        Example:\n  sluice apply -f shop.yaml      make the service shop\n  sluice weight shop/n1 5        give backend n1 a weight of 5\n  \
        sluice zero node/node-1        no new connection to any backend on node-1\n  sluice drain node/node-1       the same, and empty it\n  sluice top                     see it happen"
)]
struct Cli {
    #[command(flatten)]
    connection: ConnectionOptions,
    #[command(subcommand)]
    verb: Verb,
}

/// How to reach the agent.
#[derive(Debug, Args)]
#[command(next_help_heading = "Connection")]
struct ConnectionOptions {
    /// Unix socket of the agent [default: /run/sluice/sluice.sock]
    #[arg(long, global = true, env = "SLUICE_SOCKET", hide_env_values = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// TCP address of the agent, instead of the socket, such as http://127.0.0.1:9180 or https://host:9180
    #[arg(long, global = true, env = "SLUICE_SERVER", hide_env_values = true, value_name = "URL")]
    server: Option<String>,
    /// File with the token that writes over TCP need
    #[arg(long, global = true, env = "SLUICE_TOKEN_FILE", hide_env_values = true, value_name = "PATH")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsOptions,
    /// How long the agent may take to answer [default: 60s]
    // `drain` has one that also ends its wait: of the same name and type, so that it stands in for this one.
    #[arg(long, global = true, value_name = "TIME", value_parser = positive_time)]
    timeout: Option<String>,
}

impl ConnectionOptions {
    /// Of what the command line and the environment name, what counts: a flag beats a variable, whichever they are.
    ///
    /// # Errors
    /// Both flags are given.
    fn settle(&mut self, is_flag: impl Fn(&str) -> bool) -> Result<(), Failure> {
        match (is_flag("socket"), is_flag("server")) {
            (true, true) => Err(Failure::Usage("--socket and --server name two agents: leave one of them out".into())),
            (true, false) => {
                self.server = None;
                Ok(())
            }
            (false, _) => Ok(()),
        }
    }
}

/// A time span above zero, such as `30s`; kept as it was written.
fn positive_time(text: &str) -> Result<String, String> {
    match time_span(text) {
        Some(span) if !span.is_zero() => Ok(text.to_owned()),
        _ => Err("write a time such as 500ms or 30s".to_owned()),
    }
}

fn time_span(text: &str) -> Option<Duration> {
    text.parse().ok().and_then(|span: SignedDuration| span.try_into().ok())
}

#[derive(Debug, Subcommand)]
enum Verb {
    Agent(Box<agent::AgentArguments>),
    Apply(apply::ApplyArguments),
    Get(get::GetArguments),
    Describe(describe::DescribeArguments),
    Delete(delete::DeleteArguments),
    Diff(diff::DiffArguments),
    Weight(weight::WeightArguments),
    Zero(zero::ZeroArguments),
    Drain(drain::DrainArguments),
    Restore(restore::RestoreArguments),
    Wait(wait::WaitArguments),
    Ready(ready::ReadyArguments),
    Connections(connections::ConnectionsArguments),
    Explain(explain::ExplainArguments),
    AcceptShrink(accept_shrink::AcceptShrinkArguments),
    History(history::HistoryArguments),
    Undo(history::UndoArguments),
    Top(top::TopArguments),
    Events(events::EventsArguments),
    Monitor(monitor::MonitorArguments),
    Check(check::CheckArguments),
    Uninstall(uninstall::UninstallArguments),
    Completions(completions::CompletionsArguments),
    Man(man::ManArguments),
    Version(version::VersionArguments),
    #[command(hide = true)]
    Openapi(openapi::OpenapiArguments),
}

/// What the command line asks for.
pub enum Invocation {
    Daemon(Daemon),
    Verb(Request),
}

/// The daemon, with its flags.
pub struct Daemon {
    agent: Box<agent::AgentArguments>,
    connection: ConnectionOptions,
}

/// A verb, with where to ask.
pub struct Request {
    verb: Verb,
    connection: ConnectionOptions,
}

/// Reads the command line; ends the process with a usage message when it makes no sense.
pub fn invocation() -> Invocation {
    completions::answer_shell();
    match parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    }
}

fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let matches = Cli::command().try_get_matches_from(words)?;
    let Cli { mut connection, verb } = Cli::from_arg_matches(&matches)?;
    let settled = connection.settle(|flag| matches.value_source(flag) == Some(ValueSource::CommandLine));
    settled.map_err(|failure| Cli::command().error(ErrorKind::ArgumentConflict, failure))?;
    Ok(match verb {
        Verb::Agent(agent) => Invocation::Daemon(Daemon { agent, connection }),
        verb => Invocation::Verb(Request { verb, connection }),
    })
}

/// The exit code of what was done.
pub fn end(done: Result<(), Failure>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

impl Daemon {
    /// What the daemon runs with.
    ///
    /// # Errors
    /// When a setting is wrong or the file cannot be read.
    pub fn settings(self) -> Result<Settings, Failure> {
        self.agent.settings(self.connection)
    }
}

impl Request {
    /// Does what the verb says.
    ///
    /// # Errors
    /// A [`Failure`] with what to do about it.
    pub fn run(self) -> Result<(), Failure> {
        let Self { verb, connection } = self;
        match verb {
            // See `invocation`.
            Verb::Agent(_) => Ok(()),
            Verb::Apply(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Get(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Describe(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Delete(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Diff(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Weight(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Zero(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Drain(verb) => {
                // An agent that hangs is told within the time of the wait, and one that answers at its end is heard.
                let timeout = match connection.timeout.as_deref().and_then(time_span) {
                    Some(span) if verb.waits_with_patience() => {
                        (span < wait::PATIENCE).then(|| format!("{}ms", (span + wait::LATE).as_millis()))
                    }
                    _ => connection.timeout,
                };
                ask(ConnectionOptions { timeout, ..connection }, async |client| verb.run(client).await)
            }
            Verb::Restore(verb) => ask(connection, async |client| verb.run(client).await),
            // Its own --timeout is not that of one answer.
            Verb::Wait(verb) => {
                ask(ConnectionOptions { timeout: None, ..connection }, async |client| verb.run(client).await)
            }
            Verb::Ready(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Connections(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::AcceptShrink(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Explain(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::History(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Undo(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Top(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Events(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Monitor(verb) => ask(connection, async |client| verb.run(client).await),
            Verb::Check(verb) => verb.run(),
            Verb::Uninstall(verb) => verb.run(connection.socket),
            Verb::Completions(verb) => verb.run(),
            Verb::Man(verb) => verb.run(),
            Verb::Version(verb) => verb.run(),
            Verb::Openapi(verb) => verb.run(),
        }
    }
}

/// Runs a verb that is a client.
fn ask(connection: ConnectionOptions, verb: impl AsyncFnOnce(&Client) -> Result<(), Failure>) -> Result<(), Failure> {
    let ConnectionOptions { socket, server, token_file, tls, timeout } = connection;
    let mut client = Client::new(socket, server, token_file.as_deref(), &tls)?;
    if let Some(patience) = timeout.as_deref().and_then(time_span) {
        client.set_patience(patience);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow::Error::new(error).context("starting to ask"))?;
    runtime.block_on(verb(&client))
}

#[cfg(test)]
mod tests;
