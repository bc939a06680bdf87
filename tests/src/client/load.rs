//! Thousands of connects or exchanges, and what became of each.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::protocol::Options;

/// What a client does again and again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) options: Options,
    pub(crate) work: Work,
    pub(crate) count: Option<u64>,
    pub(crate) threads: u64,
    pub(crate) pause_micros: u64,
}

/// One attempt of a [`Load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// Connect, read who it is, close.
    Connect,
    /// One request and its answer on a connection that is kept for the next attempt, as a connection pool does: a
    /// connection that was closed while it was idle is replaced first.
    Exchange,
}

/// What happened, thread by thread in order of time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Every attempt; with several threads, sorted by start.
    pub attempts: Vec<Attempt>,
}

/// One attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attempt {
    /// When it started, in microseconds of [`crate::system::now`].
    pub start_micros: u64,
    /// When it ended, in microseconds of [`crate::system::now`].
    pub end_micros: u64,
    /// The name of the server that answered.
    pub server: Option<String>,
    /// Why there was no answer; ENODATA: the server closed before it answered.
    pub errno: Option<i32>,
}

impl Load {
    /// New connections.
    pub fn connects(to: &str) -> Self {
        Self::of(to, Work::Connect)
    }

    /// Requests over kept connections, one connection for each thread.
    pub fn exchanges(to: &str) -> Self {
        Self::of(to, Work::Exchange)
    }

    /// How many attempts in all; without it the load goes on until it is stopped.
    pub fn count(mut self, count: u64) -> Self {
        self.count = Some(count);
        self
    }

    /// How many threads share the work; 1 when not said.
    pub fn threads(mut self, threads: u64) -> Self {
        self.threads = threads;
        self
    }

    /// The pause of each thread after each attempt; none when not said.
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause_micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self
    }

    /// How sockets are made.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    fn of(to: &str, work: Work) -> Self {
        let to = super::address(to);
        Self { to, options: Options::default(), work, count: None, threads: 1, pause_micros: 0 }
    }
}

impl Report {
    /// How many attempts each server answered.
    pub fn by_server(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for server in self.order() {
            *counts.entry(server.to_owned()).or_default() += 1;
        }
        counts
    }

    /// How many attempts this server answered.
    pub fn answered_by(&self, server: &str) -> u64 {
        self.by_server().get(server).copied().unwrap_or(0)
    }

    /// How often each error happened, by its name ("ECONNREFUSED").
    pub fn errors(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for errno in self.attempts.iter().filter_map(|attempt| attempt.errno) {
            *counts.entry(format!("{:?}", Errno::from_raw(errno))).or_default() += 1;
        }
        counts
    }

    /// The servers in the order in which they answered, failures left out.
    pub fn order(&self) -> impl Iterator<Item = &str> {
        self.attempts.iter().filter_map(|attempt| attempt.server.as_deref())
    }

    /// When the last attempt started that this server answered.
    pub fn last_start(&self, server: &str) -> Option<Duration> {
        let of_server = self.attempts.iter().filter(|attempt| attempt.server.as_deref() == Some(server));
        of_server.map(|attempt| Duration::from_micros(attempt.start_micros)).max()
    }

    /// What started at or after this moment of [`crate::system::now`].
    pub fn since(&self, moment: Duration) -> Self {
        let moment = u64::try_from(moment.as_micros()).unwrap_or(u64::MAX);
        let later = self.attempts.iter().filter(|attempt| attempt.start_micros >= moment);
        Self { attempts: later.cloned().collect() }
    }
}
