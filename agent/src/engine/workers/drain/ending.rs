//! Idle connections that end as their peers would end them, while a look walks over them.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use sluice_common::{
    drain::{Doing, Draining, EOF, Inbound, Remains},
    ending::{EndingRow, IN_VAIN, OVER},
    records::CensusRow,
    tables::{Endpoint, TCP},
};

use crate::{
    kernel::{
        Passes,
        end_of_stream::{EndOfStream, Ended},
    },
    model::{BackendId, words::plural},
};

/// So many connections end in one look: the rest waits for the next one.
const MOST: u64 = 20_000;

/// What came of connections at the last look, by the cookies of their sockets. The programs have the same in ENDED.
#[derive(Default)]
pub struct EndedBefore(HashMap<u64, u32>);

/// How a connection that may be closed by netlink ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// A visit ends it.
    No,
    Counted,
    /// It has ended, and was counted then.
    Silent,
}

/// Ends connections during one look.
pub struct Ender<'a> {
    passes: &'a Passes,
    permits: &'a HashMap<BackendId, (Draining, Remains)>,
    inbound: &'a HashMap<Endpoint, Inbound>,
    result: Endings,
}

/// What one look has ended.
#[derive(Default)]
pub struct Endings {
    /// On the caller's side.
    pub callers: HashMap<BackendId, u32>,
    /// Where backends have accepted.
    pub accepted: HashMap<Endpoint, u32>,
    /// Connections that take no packets from here.
    pub in_vain: u64,
    /// Why this agent may end none in this way.
    pub forbidden: Option<String>,
    /// Time that it took: each connection costs it once, however many looks follow.
    pub took: Duration,
    noted: HashMap<u64, u32>,
    begun: u64,
}

impl Endings {
    /// What an operator should know of connections that did not end so, to be added to a message.
    pub fn remarks(&self) -> String {
        let mut text = String::new();
        if self.in_vain > 0 {
            text += &format!("; {} take no end of stream from here: aborted next", plural(self.in_vain, "connection"));
        }
        if let Some(reason) = &self.forbidden {
            text += &format!("; idle connections are aborted, not ended: {reason}");
        }
        text
    }
}

/// One network namespace.
#[derive(Default)]
pub struct Here {
    /// Opened when it is needed.
    ends: Option<Result<EndOfStream, String>>,
    /// Connections in a row that took no packets.
    unreachable: u32,
}

/// So many in a row, and the others of this namespace are not tried: each costs milliseconds.
const UNREACHABLE: u32 = 8;

impl EndedBefore {
    /// Takes note of what this look has ended, and forgets what those before it have.
    pub fn follow(&mut self, passes: &Passes, endings: &mut Endings) {
        let before = std::mem::replace(&mut self.0, std::mem::take(&mut endings.noted));
        before.keys().filter(|cookie| !self.0.contains_key(cookie)).for_each(|cookie| passes.forget_ended(*cookie));
    }

    /// What netlink is to do about a socket; `allowed` as in [`Remains`].
    pub fn close(&self, row: &CensusRow, doing: Doing, allowed: u32) -> Close {
        const ESTABLISHED: u32 = 1;
        match self.0.get(&row.cookie) {
            Some(&OVER) => Close::Silent,
            None if doing == Doing::Idle && allowed & EOF != 0 && row.state == ESTABLISHED => Close::No,
            Some(_) | None => Close::Counted,
        }
    }
}

impl<'a> Ender<'a> {
    pub fn new(
        passes: &'a Passes,
        permits: &'a HashMap<BackendId, (Draining, Remains)>,
        inbound: &'a HashMap<Endpoint, Inbound>,
    ) -> Self {
        Self { passes, permits, inbound, result: Endings::default() }
    }

    /// Ends a connection of the network namespace that this thread is in.
    pub fn end(&mut self, row: &EndingRow, here: &mut Here) {
        let start = Instant::now();
        self.try_end(row, here);
        self.result.took += start.elapsed();
    }

    fn try_end(&mut self, row: &EndingRow, here: &mut Here) {
        self.result.begun += 1;
        if self.result.begun > MOST {
            return;
        }
        let id = BackendId(row.backend_id);
        let address = Endpoint::v6(row.local, row.local_port, TCP);
        let draining = if row.accepted == 0 {
            self.permits.get(&id).map(|(draining, _)| *draining)
        } else {
            self.inbound.get(&address).map(|inbound| Draining { quiet: inbound.quiet, terms: inbound.terms })
        };
        let Some(draining) = draining else { return };
        let may_end = || self.passes.is_leaving(id, draining);
        let open = || EndOfStream::open().map_err(|error| format!("{error:#}"));
        let ended = match here.ends.get_or_insert_with(open) {
            Ok(_) if here.unreachable >= UNREACHABLE => Ok(Ended::Unreachable),
            Ok(ends) => ends.end(row, may_end).map_err(|error| format!("{error:#}")),
            Err(error) => Err(error.clone()),
        };
        match ended {
            Ok(Ended::Unreachable) => here.unreachable += 1,
            Ok(Ended::Both) => here.unreachable = 0,
            Ok(Ended::Busy) | Err(_) => {}
        }
        let how = match ended {
            Ok(Ended::Busy) => return,
            Ok(Ended::Both) if row.accepted == 0 => {
                *self.result.callers.entry(id).or_default() += 1;
                OVER
            }
            Ok(Ended::Both) => {
                *self.result.accepted.entry(address).or_default() += 1;
                OVER
            }
            Ok(Ended::Unreachable) => {
                self.result.in_vain += 1;
                IN_VAIN
            }
            Err(error) => {
                self.result.forbidden = Some(error);
                IN_VAIN
            }
        };
        match self.passes.note_ended(row.cookie, how) {
            Ok(()) => drop(self.result.noted.insert(row.cookie, how)),
            Err(error) => self.result.forbidden = Some(format!("{error:#}")),
        }
    }

    pub fn finish(self) -> Endings {
        self.result
    }
}
