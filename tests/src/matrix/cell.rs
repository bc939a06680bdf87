//! What is played, and how hard.

use std::time::Duration;

/// One client at one kind of work.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Unique.
    pub name: &'static str,
    /// A file of the matrix's directory, or "hyper".
    pub client: &'static str,
    pub server: ServerKind,
    /// As the clients name it: quick (1 ms), slow (2 s), fresh (each with a connection of its own), chunked (pauses of
    /// 3 s), poll (8 s), sse, websocket, pipelined.
    pub work: &'static str,
    /// What the service says of itself.
    pub says: Says,
    pub expect: Expect,
    /// What a reader of the result should know.
    pub note: &'static str,
}

impl Cell {
    /// Requests and answers in turn through a pool.
    pub const fn new(name: &'static str, client: &'static str, server: ServerKind, work: &'static str) -> Self {
        Self { name, client, server, work, says: Says::Nothing, expect: Expect::Moved, note: "" }
    }

    pub const fn says(self, says: Says) -> Self {
        Self { says, ..self }
    }

    pub const fn expect(self, expect: Expect) -> Self {
        Self { expect, ..self }
    }

    pub const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// Between the requests of a worker, if it is `usual` elsewhere: pooled connections must rest for longer than the
    /// service's own time of quiet, now and then.
    pub fn think(&self, usual: Duration) -> Duration {
        match (self.says, self.expect) {
            (Says::IdleClose(quiet), Expect::Moved | Expect::Whole) => Duration::from_secs(u64::from(quiet) + 2),
            (Says::IdleClose(_), Expect::Ended | Expect::Kept | Expect::Costs)
            | (Says::Nothing | Says::Request | Says::Stream, _) => usual,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerKind {
    Node,
    /// With TLS.
    NodeTls,
    Nginx,
    /// With TLS.
    NginxTls,
    Redis,
    Postgres,
}

impl ServerKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::NodeTls => "Node, TLS",
            Self::Nginx => "nginx",
            Self::NginxTls => "nginx, TLS",
            Self::Redis => "Redis",
            Self::Postgres => "PostgreSQL",
        }
    }
}

/// What a service's document says of its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    Nothing,
    /// Requests and answers in turn.
    Request,
    /// Its own time of quiet, in seconds.
    IdleClose(u32),
    Stream,
}

/// What should come of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is lost, each drain empties its backend, and idle connections are closed for that.
    Moved,
    /// Nothing is lost, and each drain empties its backend: connections end by themselves.
    Ended,
    /// Nothing is lost. Whether a connection was ever quiet for long enough is left open.
    Whole,
    /// Nothing is lost and nothing closed: connections live to the deadline, and on.
    Kept,
    /// The client uses a connection without a look whether it is still there, or does not connect again: each one that
    /// is closed, by whomever, costs one request. No other is lost.
    Costs,
}

/// How long, how many and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub seconds: u64,
    pub workers: u32,
    /// Between the requests of a worker.
    pub think: Duration,
    /// Quiet after which drains close idle connections.
    pub idle_close: &'static str,
    /// Of each drain.
    pub deadline: &'static str,
    /// Whether the agent keeps its log to itself.
    pub quiet: bool,
}
