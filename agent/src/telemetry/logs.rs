//! Logs to standard error: text for people, JSON for collectors.

use std::io::{IsTerminal, stderr};

use anyhow::{Context, Result, anyhow, ensure};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt};

use crate::settings::LogFormat;

/// The target of the programs' messages in the log.
const PROGRAMS: &str = "sluice_ebpf";

/// Whether `level` names the programs, as in `sluice_ebpf=debug`. A level for everything does not ask for their
/// messages, because other programs have to be loaded for them.
pub fn asks_for_programs(level: &str) -> bool {
    let parts = level.split(',').filter_map(|word| word.split_once('='));
    let wanted =
        parts.filter(|(part, _)| part.trim() == PROGRAMS || part.trim().starts_with(PROGRAMS) && part.contains("::"));
    wanted.filter_map(|(_, level)| level.trim().parse().ok()).any(|level: LevelFilter| level >= LevelFilter::DEBUG)
}

/// Starts logging for the whole process. `level` is `error`, `warn`, `info`, `debug` or `trace`, or a list such as
/// `info,sluice=debug`.
///
/// # Errors
/// When `level` is none of these, or logging has been started before.
pub fn start(format: LogFormat, level: &str) -> Result<()> {
    let wrong = || {
        format!("{level:?} is no log level: write error, warn, info, debug, trace, or a list such as info,sluice=debug")
    };
    // A filter takes any other word for a target, and silences the rest.
    let is_known = |word: &str| word.contains('=') || word.trim().parse::<LevelFilter>().is_ok();
    ensure!(level.split(',').all(is_known), wrong());
    let filter = EnvFilter::try_new(level).with_context(wrong)?;
    // That nobody reads the logs any more is no reason to end.
    let builder = fmt().with_env_filter(filter).with_writer(stderr).with_target(false).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| anyhow!("starting to log: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_speak_when_they_are_named() {
        for level in ["sluice_ebpf=debug", "info,sluice_ebpf=trace", "warn, sluice_ebpf::observe=debug"] {
            assert!(asks_for_programs(level), "{level}");
        }
        for level in ["debug", "trace", "sluice=debug", "sluice_ebpf=info", "sluice_ebpf"] {
            assert!(!asks_for_programs(level), "{level}");
        }
    }
}
