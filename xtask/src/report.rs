//! What becomes of the stages of a test run: counted from what test programs say, and shown in a table. A program that
//! ran nothing or broke off has failed.

use std::{
    io::{BufRead, BufReader, Write, stdout},
    process::{Command, ExitCode, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

/// What became of a stage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Tests (or checks) that passed.
    pub passed: u64,
    /// Tests (or checks) that failed.
    pub failed: u64,
    /// Tests that were left out on purpose.
    pub skipped: u64,
    /// What a reader of the table should know.
    pub note: String,
}

impl Outcome {
    /// A stage that could not do its work.
    pub fn failure(note: impl Into<String>) -> Self {
        Self { failed: 1, note: note.into(), ..Self::default() }
    }
}

/// The stages that have run, with their times.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<(String, Duration, Outcome)>,
}

impl Table {
    /// Runs a stage. An error of it is a failure like any other: the next stage runs all the same.
    pub fn run(&mut self, name: &str, stage: impl FnOnce() -> Result<Outcome>) {
        announce(name);
        let start = Instant::now();
        let outcome = stage().unwrap_or_else(|error| Outcome::failure(format!("{error:#}")));
        if outcome.failed > 0 && !outcome.note.is_empty() {
            println!("{name}: {}", outcome.note);
        }
        self.add(name, start.elapsed(), outcome);
    }

    /// Adds a stage that is over.
    pub fn add(&mut self, name: &str, time: Duration, outcome: Outcome) {
        self.rows.push((name.to_owned(), time, outcome));
    }

    /// Prints the table and, alone on the last line, the sum.
    pub fn finish(self) -> ExitCode {
        let width = self.rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0).max(5);
        println!("\n{:width$}  passed  failed  left out     time", "stage");
        for (name, time, outcome) in &self.rows {
            let Outcome { passed, failed, skipped, note } = outcome;
            let time = format!("{:.1} s", time.as_secs_f64());
            println!("{name:width$}  {passed:6}  {failed:6}  {skipped:8}  {time:>7}  {note}");
        }
        let sum = |of: fn(&Outcome) -> u64| self.rows.iter().map(|(.., outcome)| of(outcome)).sum::<u64>();
        let (passed, failed) = (sum(|outcome| outcome.passed), sum(|outcome| outcome.failed));
        println!("\n{passed} passed, {failed} failed");
        // Nothing run at all, for example by a filter that matches nothing, is no success.
        if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Says what begins.
pub fn announce(what: &str) {
    println!("\n=== {what}");
}

/// Reads the output of libtest programs, one or several after the other.
#[derive(Debug, Default)]
pub struct Counter {
    passed: u64,
    failed: u64,
    ignored: u64,
    filtered: u64,
    /// What the lines of a program that has begun and not ended say so far.
    open: Option<(u64, u64)>,
    failures: Vec<String>,
}

impl Counter {
    /// Takes one line of output.
    pub fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.open = None;
            for part in rest.split([';', '.']) {
                self.add(part.trim());
            }
        } else if line.starts_with("running ") && (line.ends_with(" tests") || line.ends_with(" test")) {
            self.open = Some((0, 0));
        } else if let Some(rest) = line.strip_prefix("test ") {
            self.test(rest);
        }
    }

    /// The names of the tests that failed.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// What it comes to when the program has ended. With a filter it may be that nothing matched.
    pub fn finish(mut self, succeeded: bool, filter: Option<&str>) -> Outcome {
        let mut notes = Vec::new();
        if let Some((passed, failed)) = self.open {
            self.passed += passed;
            self.failed += failed + 1;
            notes.push("a test program broke off".to_owned());
        } else if !succeeded && self.failed == 0 {
            self.failed += 1;
            notes.push("the test program failed".to_owned());
        }
        if self.passed + self.failed == 0 {
            match filter {
                Some(filter) => notes.push(format!("no test matches {filter}")),
                None => {
                    self.failed = 1;
                    notes.push("no test ran".to_owned());
                }
            }
        }
        // What a filter leaves out was not wanted and is not worth a word.
        let skipped = if filter.is_some() { self.ignored } else { self.ignored + self.filtered };
        notes.extend(self.failures.iter().map(|name| format!("failed: {name}")));
        Outcome { passed: self.passed, failed: self.failed, skipped, note: notes.join("; ") }
    }

    fn add(&mut self, part: &str) {
        let Some((number, what)) = part.split_once(' ') else { return };
        let Ok(number) = number.parse::<u64>() else { return };
        match what {
            "passed" => self.passed += number,
            "failed" => self.failed += number,
            "ignored" => self.ignored += number,
            "filtered out" => self.filtered += number,
            _ => {}
        }
    }

    fn test(&mut self, rest: &str) {
        let Some((name, result)) = rest.split_once(" ... ") else { return };
        let open = self.open.get_or_insert_default();
        match result.trim() {
            "ok" => open.0 += 1,
            "FAILED" => {
                open.1 += 1;
                self.failures.push(name.to_owned());
            }
            _ => {}
        }
    }
}

/// Runs a command whose success is one check.
pub fn check(command: &mut Command) -> Result<Outcome> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    Ok(if status.success() { Outcome { passed: 1, ..Outcome::default() } } else { Outcome::failure("see above") })
}

/// Runs test programs, shows what they say and counts it.
pub fn tests(command: &mut Command, filter: Option<&str>) -> Result<Outcome> {
    let mut counter = Counter::default();
    let status = watch(command, |line| counter.line(line))?;
    Ok(counter.finish(status.success(), filter))
}

/// Runs a command, shows what it says on its standard output and hands each line on.
pub fn watch(command: &mut Command, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("starting {command:?}"))?;
    let output = child.stdout.take().context("a child has no output")?;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading the output of a child")?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end();
        // Nobody reads on: the child's result still counts.
        let _ = writeln!(stdout(), "{line}");
        each(line);
    }
    child.wait().context("waiting for a child")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str, succeeded: bool, filter: Option<&str>) -> Outcome {
        let mut counter = Counter::default();
        text.lines().for_each(|line| counter.line(line));
        counter.finish(succeeded, filter)
    }

    const TWO: &str = "\nrunning 2 tests\ntest a ... ok\ntest b ... FAILED\n\ntest result: FAILED. 1 passed; 1 failed; \
                       3 ignored; 0 measured; 4 filtered out; finished in 0.50s\n";

    #[test]
    fn adds_up_several_programs() {
        let outcome = count(&format!("{TWO}{TWO}"), false, None);
        assert_eq!((outcome.passed, outcome.failed, outcome.skipped), (2, 2, 14));
        assert_eq!(outcome.note, "failed: b; failed: b");
    }

    #[test]
    fn nothing_run_is_a_failure() {
        let nothing = "running 0 tests\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 9 filtered out";
        assert_eq!(count(nothing, true, None).failed, 1);
        assert_eq!(count("", true, None).failed, 1);
    }

    #[test]
    fn a_filter_may_match_nothing() {
        let outcome = count("", true, Some("x"));
        assert_eq!((outcome.passed, outcome.failed, outcome.note.as_str()), (0, 0, "no test matches x"));
    }

    #[test]
    fn a_program_that_breaks_off_has_failed() {
        let outcome = count("running 3 tests\ntest a ... ok\n", false, None);
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(count("", false, Some("x")).failed, 1);
    }
}
