//! The black-box tests in a virtual machine: which of them run there, and what became of them.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{End, Job, quoted, run_job, show_tail};
use crate::{
    binaries::Binaries,
    report::{Counter, Outcome},
};

/// Tests that run at the same time in a machine.
const THREADS: &str = "3";

/// The longest that the usual tests may take, on a computer that others use too.
const LIMIT: Duration = Duration::from_secs(1800);
/// The longest that every test together may take.
const LIMIT_OF_ALL: Duration = Duration::from_secs(5400);

/// Which tests a machine runs.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// Only those whose name contains this.
    pub filter: Option<&'a str>,
    /// Those too that need programs of the host, for the machine can see them.
    pub shared: bool,
    /// Those too that every kernel answers alike.
    pub all: bool,
}

impl<'a> Selection<'a> {
    /// Whether any of the tests in this program is selected.
    pub fn any(self, tests: &Path) -> Result<bool> {
        let mut command = Command::new(tests);
        let output = command.args(["--list", "--format", "terse"]).args(self.words()).output();
        let output = output.with_context(|| format!("starting {command:?}"))?;
        ensure!(output.status.success(), "{command:?} failed");
        Ok(!output.stdout.is_empty())
    }

    /// The words that tell the test program.
    fn words(self) -> Vec<&'a str> {
        let mut words = vec!["--skip", "::host_"];
        if !self.shared {
            words.extend(["--skip", "::usr_"]);
        }
        if !self.all {
            words.extend(["--skip", "outside::"]);
        }
        words.extend(self.filter);
        words
    }

    /// What a reader of the table should know of the tests that are left out.
    fn left_out(self, outcome: &Outcome) -> Option<String> {
        let why = if self.all { "need programs of the host" } else { "run on the host" };
        (outcome.skipped > 0 && self.filter.is_none()).then(|| format!("{} {why}", outcome.skipped))
    }
}

/// Boots the kernel, for example "6.12", and runs the tests there.
pub fn test(series: &str, binaries: &Binaries, selection: Selection<'_>, accelerator: &str) -> Result<Outcome> {
    let Binaries { agent, client, tests } = binaries;
    ensure!(selection.any(tests)?, "no test that would run there is selected; --all selects from every test");
    let words: Vec<String> = selection.words().into_iter().map(quoted).collect();
    let job = Job {
        programs: vec![(agent, "sluice"), (client, "sluice-test-client"), (tests, "tests")],
        command: format!("tests --test-threads {THREADS} {}", words.join(" ")),
        interactive: false,
        shared: selection.shared,
        limit: if selection.all { LIMIT_OF_ALL } else { LIMIT },
    };
    let mut counter = Counter::default();
    let End { exit, console } = run_job(series, &job, accelerator, |line| counter.line(line))?;
    if exit.is_none() || !counter.failures().is_empty() {
        show_tail(&console);
    }
    let mut outcome = counter.finish(exit == Some(0), selection.filter);
    if outcome.passed + outcome.failed == 0 {
        outcome.failed = 1;
    }
    let stopped = exit.is_none().then(|| "the machine stopped before the tests were through".to_owned());
    let notes = [stopped, selection.left_out(&outcome), Some(outcome.note)];
    outcome.note = notes.into_iter().flatten().filter(|note| !note.is_empty()).collect::<Vec<_>>().join("; ");
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_are_left_out_by_their_names() {
        let all = Selection { filter: None, shared: true, all: true };
        assert_eq!(all.words(), ["--skip", "::host_"]);
        let few = Selection { filter: Some("zero"), shared: false, all: false };
        assert_eq!(few.words(), ["--skip", "::host_", "--skip", "::usr_", "--skip", "outside::", "zero"]);
    }

    #[test]
    fn a_quote_in_a_filter_stays_a_quote() {
        assert_eq!(quoted("a'b"), "'a'\\''b'");
    }
}
