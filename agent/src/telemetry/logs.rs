//! Logs to standard error: text for people, JSON for collectors.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result, anyhow, ensure};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::settings::LogFormat;

/// Starts logging for the whole process. `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list such as
/// `info,sluice=debug`.
///
/// # Errors
/// When `level` is none of these, or logging has been started before.
pub fn start(format: LogFormat, level: &str) -> Result<()> {
    let wrong = || {
        format!("{level:?} is no log level: write error, warn, info, debug, trace, or a list such as info,sluice=debug")
    };
    // A filter takes any other word for the name of a part of the program, and is silent about the rest.
    let is_known = |word: &str| word.contains('=') || word.trim().parse::<LevelFilter>().is_ok();
    ensure!(level.split(',').all(is_known), wrong());
    let filter = EnvFilter::try_new(level).with_context(wrong)?;
    // A reader of the logs that has gone is no reason to end.
    let builder = fmt().with_env_filter(filter).with_writer(stderr).with_target(false).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| anyhow!("starting to log: {error}"))
}
