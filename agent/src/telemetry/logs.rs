//! Logs to standard error: text for people, JSON for collectors.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result, anyhow};
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::settings::LogFormat;

/// Starts logging for the whole process. `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list such as
/// `info,sluice=debug`.
///
/// # Errors
/// When `level` is none of these, or logging has been started before.
pub fn start(format: LogFormat, level: &str) -> Result<()> {
    let filter = EnvFilter::try_new(level).with_context(|| {
        format!("{level:?} is no log level: write error, warn, info, debug, trace, or a list such as info,sluice=debug")
    })?;
    let builder = fmt().with_env_filter(filter).with_writer(stderr).with_target(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| anyhow!("starting to log: {error}"))
}
