//! Draining backends: which of their connections the agent allows the programs to close, and what the programs find.
//! These tables are not pinned: a new agent fills its own.

use crate::{
    flight::{Activity, Side, UNKNOWN},
    opening::Session,
    records::{ConnectionRecord, Phase},
    tables::TCP,
};

/// Entry of DRAINING, by backend id: the backend's connections are counted, and closed when idle for `quiet`. A restore
/// removes the entry first: from then on nothing is closed.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draining {
    /// An idle connection may be closed after this many milliseconds of quiet; 0: never.
    pub quiet: u32,
    /// A fingerprint of what else the drain allowed when this was written. A pass that was begun on other terms closes
    /// nothing because of its deadline, and nothing that was accepted.
    pub terms: u32,
}

/// Quiet by which in flight and idle are told apart while idle connections are not closed, in ms.
pub const DEFAULT_QUIET: u32 = 2000;

/// Entry of REMAINS, by backend id: what one pass found. The agent makes a new one before each pass.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// CLOCK_MONOTONIC ns at which the pass began.
    pub clock: u64,
    /// What this pass may do and go by: [`ALL`], [`DATAGRAMS`], [`EOF`], [`PING_PONG`], [`REQUESTS`].
    pub allowed: u32,
    /// See [`Draining::terms`].
    pub terms: u32,
    /// SYN sent.
    pub connecting: u32,
    pub in_flight: u32,
    pub idle: u32,
    /// Connections that may be closed now, connected datagram sockets among them.
    pub closable: u32,
    /// Connected datagram sockets, which do not tell whether they are idle.
    pub datagrams: u32,
    pub closed_idle: u32,
    /// Closed because of [`ALL`], idle or not.
    pub closed_late: u32,
    pub closed_datagrams: u32,
    /// Connections that the kernel refused to close.
    pub refused: u32,
    /// Of the idle ones: sessions, which are not closed for being idle.
    pub sessions: u32,
    /// CLOCK_MONOTONIC ns at which the oldest connection began; 0 when there is none.
    pub oldest: u64,
}

/// Every connection may be closed: the deadline is over.
pub const ALL: u32 = 1;
/// Connected datagram sockets may be closed.
pub const DATAGRAMS: u32 = 2;
/// Idle connections are ended by the agent, as their peers would (see [`crate::ending`]), and aborted only where that
/// was in vain.
pub const EOF: u32 = 4;
/// No program looks before keep-alive probes here: the kernel's ping-pong mode stands in.
pub const PING_PONG: u32 = 8;
/// The service says that its connections carry requests and answers in turn: none is taken for a session.
pub const REQUESTS: u32 = 16;

/// Entry of INBOUND, by the address of a backend: what one pass found on the accepting side.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Inbound {
    /// Idle connections may be closed after this many milliseconds of quiet; 0: never.
    pub quiet: u32,
    pub in_flight: u32,
    pub idle: u32,
    pub closed: u32,
    /// A backend with this address: nothing is closed unless DRAINING still has it with this `quiet` and these `terms`.
    pub backend_id: u32,
    /// See [`Draining::terms`].
    pub terms: u32,
}

/// Entry of NAMESPACES, by the cookie of a network namespace that has closable sockets.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceEntry {
    /// A process that made such a socket, in the initial pid namespace.
    pub pid: u32,
    pub closable: u32,
    /// The number of the namespace's file.
    pub inode: u32,
    pub padding: u32,
}

/// The helper number that stands for the kernel function `bpf_sock_destroy` in the object: the agent replaces calls of
/// it before it loads the programs. No helper has this number.
pub const DESTROY: u32 = 0x5eed_0001;

const _: () = {
    assert!(size_of::<Draining>() == 8);
    assert!(size_of::<Remains>() == 64);
    assert!(size_of::<Inbound>() == 24);
    assert!(size_of::<NamespaceEntry>() == 16);
};

impl Draining {
    /// `quiet` in jiffies, of which the kernel has `hz` a second.
    #[inline(always)]
    pub const fn patience(&self, hz: u32) -> u32 {
        patience(if self.quiet == 0 { DEFAULT_QUIET } else { self.quiet }, hz)
    }
}

impl Remains {
    /// All connections.
    pub fn total(&self) -> u64 {
        [self.connecting, self.in_flight, self.idle, self.datagrams].into_iter().map(u64::from).sum()
    }
}

/// What a connection of a draining backend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// SYN sent.
    Connecting,
    /// A connected datagram socket, which does not tell.
    Datagrams,
    InFlight,
    Idle,
    /// Idle, as far as the socket shows, and yet not to be closed for that.
    Session,
}

/// What a connection does, and whether it may be closed in this pass. `activity` is asked for established TCP
/// connections only.
#[inline(always)]
pub fn judge(
    record: &ConnectionRecord,
    activity: impl FnOnce() -> Option<Activity>,
    draining: &Draining,
    pass: &Remains,
    hz: u32,
) -> (Doing, bool) {
    let allowed = if draining.terms == pass.terms { pass.allowed } else { 0 };
    let all = allowed & ALL != 0;
    if record.protocol != TCP {
        return (Doing::Datagrams, all || allowed & DATAGRAMS != 0);
    }
    if record.phase != Phase::Established as u8 {
        return (Doing::Connecting, all);
    }
    let Some(activity) = activity() else {
        return (Doing::InFlight, false);
    };
    let ping_pong = if pass.allowed & PING_PONG == 0 { UNKNOWN } else { activity.ping_pong };
    let activity = record.tell(Activity { ping_pong, ..activity }, pass.clock, hz);
    let patience = draining.patience(hz);
    if activity.is_busy(Side::Caller, patience) {
        return (Doing::InFlight, all);
    }
    if all {
        return (Doing::Idle, true);
    }
    if draining.quiet != 0 && allowed & REQUESTS == 0 && !matches!(record.session(&activity), Session::None) {
        return (Doing::Session, false);
    }
    (Doing::Idle, draining.quiet != 0 && activity.may_close(Side::Caller, patience))
}

/// Milliseconds as jiffies, rounded up.
#[inline(always)]
pub const fn patience(milliseconds: u32, hz: u32) -> u32 {
    let jiffies = (milliseconds as u64 * hz as u64).wrapping_add(999) / 1000;
    if jiffies > i32::MAX as u64 { i32::MAX as u32 } else { jiffies as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::opening::Opening;

    #[test]
    fn a_session_is_closed_when_the_service_says_request_or_at_the_deadline() {
        let mut record = ConnectionRecord {
            frontend: [0; 4],
            backend: [0; 4],
            frontend_port: 0,
            backend_port: 0,
            protocol: TCP,
            phase: Phase::Established as u8,
            notes: 0,
            service_id: 0,
            backend_id: 0,
            pid: 0,
            seen: 0,
            since: 0,
        };
        let idle = Activity {
            now: 10_000,
            last_sent: 500,
            last_received: 510,
            bytes_sent: 80,
            bytes_received: 400,
            unacknowledged: 0,
            unread: 0,
            last_segment: 400,
            keepalive: 0,
            hung_up: 0,
            segments_sent: 2,
            spoke_for: 0,
            multipath: 0,
            written: 81,
            answered: 0,
            ping_pong: 1,
            acknowledged_late: 0,
        };
        let flying = Activity { last_sent: 511, ..idle };
        let (terms, other) = (5, 6);
        for (opening, activity, quiet, allowed, terms_of_pass, expected) in [
            (Opening::Caller, idle, 2000, 0, terms, (Doing::Idle, true)),
            (Opening::Server, idle, 2000, 0, terms, (Doing::Session, false)),
            (Opening::Postgres, idle, 2000, 0, terms, (Doing::Session, false)),
            (Opening::Unknown, idle, 2000, 0, terms, (Doing::Session, false)),
            (Opening::Server, flying, 2000, 0, terms, (Doing::InFlight, false)),
            (Opening::Server, idle, 2000, REQUESTS, terms, (Doing::Idle, true)),
            (Opening::Server, idle, 2000, ALL, terms, (Doing::Idle, true)),
            // The service says something else by now.
            (Opening::Server, idle, 2000, REQUESTS, other, (Doing::Session, false)),
            // Nothing idle is closed here anyway.
            (Opening::Server, idle, 0, 0, terms, (Doing::Idle, false)),
        ] {
            record.note_opening(opening);
            let pass = Remains { clock: 60_000_000_000, allowed, terms: terms_of_pass, ..Remains::default() };
            let judged = judge(&record, || Some(activity), &Draining { quiet, terms }, &pass, 250);
            assert_eq!(judged, expected, "{opening:?} {allowed} {quiet}");
        }
    }

    #[test]
    fn quiet_becomes_jiffies() {
        assert_eq!(Draining { quiet: 2000, terms: 0 }.patience(250), 500);
        assert_eq!(Draining { quiet: 1, terms: 0 }.patience(250), 1);
        assert_eq!(Draining::default().patience(100), 200);
        assert_eq!(patience(u32::MAX, 1000), i32::MAX as u32);
    }
}
