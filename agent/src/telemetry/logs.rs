//! Logs to standard error: text for people, JSON for collectors.

use std::io::{self, IsTerminal, Write, stderr};

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
    let builder =
        fmt().with_env_filter(filter).with_writer(|| OneLine(stderr())).with_target(false).log_internal_errors(false);
    let started = match format {
        LogFormat::Text => builder.with_ansi(stderr().is_terminal()).finish().try_init(),
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
    };
    started.map_err(|error| anyhow!("starting to log: {error}"))
}

/// Writes each event as one line: control characters, which may come from the names of files, become escapes. Colours stay.
struct OneLine<W>(W);

impl<W: Write> Write for OneLine<W> {
    /// One event, as the formatter writes it.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = text.strip_suffix('\n').map_or((&*text, ""), |line| (line, "\n"));
        let colours = stderr().is_terminal();
        let mut out = String::with_capacity(text.len());
        for c in line.chars() {
            match c {
                '\u{1b}' if colours => out.push(c),
                c if c.is_control() => out.extend(c.escape_default()),
                c => out.push(c),
            }
        }
        self.0.write_all((out + end).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_makes_no_line_of_its_own() {
        let mut written = Vec::new();
        let event = b"ERROR reading /etc/a\n2026 INFO all is well\x1b[2K.yaml: no\n";
        assert_eq!(OneLine(&mut written).write(event).unwrap(), event.len());
        let line = String::from_utf8(written).unwrap();
        assert_eq!(line.matches('\n').count(), 1, "{line}");
        assert!(line.contains(r"/etc/a\n2026 INFO"), "{line}");
    }

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
