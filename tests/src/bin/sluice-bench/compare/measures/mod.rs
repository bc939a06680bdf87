//! What is measured, one file for each kind.

pub mod behaviour;
pub mod connections;
pub mod established;
pub mod exactness;
pub mod loss;
pub mod zero;

use jiff::{Timestamp, tz::TimeZone};

use super::{candidates::Candidate, topology::files};
use crate::report::{commit, kernel, processor, processors};

/// What a reader must know of the machine.
pub fn facts(candidates: &[Box<dyn Candidate>]) -> Vec<(String, String)> {
    let mut facts = vec![
        ("date of measuring".to_owned(), Timestamp::now().to_zoned(TimeZone::UTC).date().to_string()),
        ("kernel".to_owned(), format!("Linux {}", kernel())),
        ("processor".to_owned(), format!("{}, {} of them", processor(), processors())),
    ];
    let files = files().map_or_else(|_| "unknown".to_owned(), |files| files.to_string());
    facts.push(("open files of a process, at most".to_owned(), files));
    facts.extend(commit().map(|commit| ("commit of Sluice".to_owned(), commit)));
    facts.extend(candidates.iter().map(|candidate| (candidate.name().to_owned(), candidate.version())));
    facts
}
