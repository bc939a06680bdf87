//! The loss matrix in full: every pair of client and server for a minute, several side by side, as the rows of a table.

use std::{
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sluice_tests::{
    interrupt,
    matrix::{self, CELLS, Cell, Effort, Expect, HEAD, Outcome, Says, closes_in_one_step},
    system::patience,
};

use crate::{
    Scale,
    report::{Figure, Report, Target, Unit},
};

const GROUP: &str = "loss matrix: servers leave and come back in turn";
/// Most of a cell's time is waiting.
const SIDE_BY_SIDE: usize = 6;
const SIDE_BY_SIDE_IF_EMULATED: usize = 2;
const SECONDS: u32 = 60;

/// Plays every cell whose name contains what follows "matrix/" in the filter.
pub fn run(scale: Scale, report: &mut Report) -> Result<()> {
    let wanted = |cell: &Cell| scale.part.is_none_or(|part| cell.name.contains(part));
    let cells: Vec<Cell> = CELLS.into_iter().filter(wanted).collect();
    ensure!(!cells.is_empty(), "no cell of the matrix has {} in its name", scale.part.unwrap_or_default());
    let emulated = patience(Duration::from_secs(1)) > Duration::from_secs(1);
    println!("\n{HEAD}");
    let mut sums = Sums::default();
    let mut rows = Vec::new();
    side_by_side(&cells, scale, emulated, |cell, result| {
        match &result {
            Ok(outcome) => println!("{}", outcome.row(cell)),
            Err(error) => println!("| {} | {} | did not run: {error:#} |", cell.name, cell.client),
        }
        rows.push(row(cell, &result));
        sums.add(cell, &result);
    });
    interrupt::check()?;
    report.attach("matrix", rows.into());
    sums.report(closes_in_one_step()?, report);
    Ok(())
}

/// Plays the cells, a few at a time, and tells each result when it is there.
fn side_by_side(cells: &[Cell], scale: Scale, emulated: bool, mut told: impl FnMut(&Cell, Result<Outcome>)) {
    let left = Mutex::new(cells.iter());
    let (sender, results) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..if emulated { SIDE_BY_SIDE_IF_EMULATED } else { SIDE_BY_SIDE } {
            let (left, sender) = (&left, sender.clone());
            scope.spawn(move || {
                // Not in the loop's head: the lock would be held while a cell is played.
                let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
                while let Some(cell) = next() {
                    let result = interrupt::check().and_then(|()| matrix::run(cell, &effort(scale, emulated)));
                    if sender.send((cell, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        results.iter().for_each(|(cell, result)| told(cell, result));
    });
}

/// A pool gives the connection that came back last: between two requests of all workers together there is more than the
/// time of quiet, or the pool never rests.
fn effort(scale: Scale, emulated: bool) -> Effort {
    let (think, idle_close, workers) = if emulated { (2000, "500ms", 2) } else { (1200, "100ms", 4) };
    let seconds = scale.of(SECONDS).into();
    Effort { seconds, workers, think: Duration::from_millis(think), idle_close, deadline: "20s", quiet: true }
}

fn row(cell: &Cell, result: &Result<Outcome>) -> Value {
    let says = match cell.says {
        Says::Nothing => json!({}),
        Says::IdleClose(quiet) => json!({"idleClose": format!("{quiet}s")}),
        Says::Request => json!({"protocol": "request"}),
        Says::Stream => json!({"protocol": "stream"}),
    };
    let (server, result) = (cell.server.name(), result.as_ref().map_err(|error| format!("{error:#}")));
    json!({"cell": cell.name, "server": server, "work": cell.work, "says": says, "note": cell.note, "result": result})
}

/// Of all cells.
#[derive(Debug, Default)]
struct Sums {
    broken: u32,
    requests: u64,
    lost: u64,
    given_up: u64,
    lost_by_others: u64,
    closed: u64,
    closed_of_others: u64,
    drains: usize,
    drained: usize,
}

impl Sums {
    fn add(&mut self, cell: &Cell, result: &Result<Outcome>) {
        let Ok(outcome) = result else {
            self.broken += 1;
            return;
        };
        self.requests += outcome.report.requests;
        match cell.expect {
            Expect::Costs => {
                self.lost_by_others += outcome.report.failed;
                self.closed_of_others += outcome.closed();
            }
            Expect::Moved | Expect::Ended | Expect::Whole | Expect::Kept => {
                let lost = outcome.reached.unwrap_or(u64::MAX).min(outcome.report.failed);
                self.lost += lost;
                self.given_up += outcome.report.failed - lost;
                self.closed += outcome.closed();
            }
        }
        if matches!(cell.expect, Expect::Moved | Expect::Ended) {
            self.drains += outcome.drains.len();
            self.drained += outcome.drained();
        }
    }

    fn report(&self, in_one_step: bool, report: &mut Report) {
        let how = if in_one_step { "under the lock of the socket" } else { "by netlink: look and close are two steps" };
        let count = |name: &str, value: u64| Figure::new(GROUP, name, value as f64, Unit::Count);
        let none = Target::AtMost(0.0);
        report.add(count("cells that could not be played", self.broken.into()).target(none));
        report.add(count("requests", self.requests));
        report.add(count("idle connections closed", self.closed).note(how));
        // What netlink closes may cost a request; more than that is a fault.
        let target = if in_one_step { none } else { Target::AtMost(self.closed as f64) };
        report.add(count("requests lost", self.lost).target(target));
        let given_up = count("requests that clients gave up before they left", self.given_up);
        report.add(given_up.note("the connection was closed as they took it out of their pool"));
        let note = format!("{} connections of theirs were closed", self.closed_of_others);
        let others = count("requests lost by clients that do not look or come back", self.lost_by_others);
        report.add(others.target(Target::AtMost(self.closed_of_others as f64)).note(note));
        let stayed = (self.drains - self.drained) as u64;
        let note = format!("of {}, without streams and answers with pauses", self.drains);
        report.add(count("drains that ended with connections left", stayed).target(none).note(note));
    }
}
