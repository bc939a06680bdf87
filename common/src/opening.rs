//! Who opens a conversation. What looks idle between two requests may be a session that waits, in the middle of a
//! transaction for instance, and no socket tells the one from the other. Who spoke first tells some of them.
//!
//! A segment acknowledges all that its sender has received. So what a server had sent before the first segment that
//! acknowledges data of the caller, it has sent unasked: it greets, as MySQL, SMTP, FTP and many others do.

use crate::{flight::Activity, records::ConnectionRecord};

/// What is known of the first words of a TCP connection.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Nobody has looked: the connection is older than the programs that do, or another program has taken the callback away.
    Unknown = 0,
    /// The first data of the caller is not acknowledged yet.
    Awaited = 1,
    /// It had the length of PostgreSQL's requests for encryption, and the next data is not acknowledged yet.
    Short = 2,
    /// The caller spoke first.
    Caller = 3,
    /// The server spoke first.
    Server = 4,
    /// The caller asked as a client of PostgreSQL does, and was answered so.
    Postgres = 5,
}

/// Whether a connection is taken for a session, which may wait in the middle of something, and why. No `Option`: the
/// programs use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    None,
    ServerFirst,
    Postgres,
    /// It is not known who spoke first.
    Unknown,
}

/// Bit of [`ConnectionRecord::notes`]: the socket has datagram flows in FLOWS.
pub const HAS_FLOWS: u8 = 1;
/// Bit of the same: the programs have asked for the callbacks by which they learn of an [`Opening`].
pub const LISTENS: u8 = 1 << 4;
/// Place of the [`Opening`] in the same.
const SHIFT: u8 = 1;
const MASK: u8 = 7 << SHIFT;

/// Length of SSLRequest and GSSENCRequest, which are answered by a single byte:
/// <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const ENCRYPTION_REQUEST: u64 = 8;

impl Opening {
    /// What is known once data of the caller was acknowledged. `unasked`: bytes that the server had sent before the
    /// segment that did; `acknowledged`: bytes of the caller, all that are by now.
    #[inline(always)]
    pub const fn after(before: u8, unasked: u32, acknowledged: u64) -> Self {
        const SHORT: u8 = Opening::Short as u8;
        match (before, unasked) {
            (SHORT, 1) => Self::Postgres,
            (SHORT, _) => Self::Caller,
            (_, 0) if acknowledged == ENCRYPTION_REQUEST => Self::Short,
            (_, 0) => Self::Caller,
            (_, _) => Self::Server,
        }
    }
}

/// Bytes that the peer had sent before its last segment, which `snd_wl1` is the begin of. `received` counts that segment
/// as far as `rcv_nxt` does.
#[inline(always)]
pub const fn before_last_segment(received: u64, rcv_nxt: u32, snd_wl1: u32) -> u32 {
    (received as u32).wrapping_sub(rcv_nxt.wrapping_sub(snd_wl1))
}

impl ConnectionRecord {
    /// An [`Opening`].
    #[inline(always)]
    pub const fn opening(&self) -> u8 {
        (self.notes & MASK) >> SHIFT
    }

    #[inline(always)]
    pub const fn note_opening(&mut self, opening: Opening) {
        self.notes = (self.notes & !MASK) | ((opening as u8) << SHIFT);
    }

    /// Whether a connection that seems idle is taken for a session, and why. One that the server has closed waits for
    /// nothing any more.
    #[inline(always)]
    pub const fn session(&self, activity: &Activity) -> Session {
        const CALLER: u8 = Opening::Caller as u8;
        const SERVER: u8 = Opening::Server as u8;
        const POSTGRES: u8 = Opening::Postgres as u8;
        if activity.hung_up != 0 || activity.bytes_received == 0 {
            return Session::None;
        }
        if activity.bytes_sent == 0 {
            return Session::ServerFirst;
        }
        match self.opening() {
            CALLER => Session::None,
            SERVER => Session::ServerFirst,
            POSTGRES => Session::Postgres,
            _ => Session::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{records::Phase, tables::TCP};

    /// A segment of the server: its first byte, its bytes, and how many of the caller's it acknowledges.
    type Segment = (u32, u32, u64);

    /// What the programs know of a conversation in which the caller receives these segments in this order. The kernel calls
    /// the programs when a segment acknowledges data: on its fast path after it has taken the segment's own data in.
    fn opening(segments: &[Segment], fast: bool) -> u8 {
        // The server's first byte has this number.
        const FIRST: u32 = u32::MAX - 20;
        let (mut opening, mut received, mut acknowledged) = (Opening::Awaited as u8, 0, 0);
        for (at, length, acknowledges) in segments {
            let taken = if *at == received { *length } else { 0 };
            let counted = received + if fast { taken } else { 0 };
            let listens = opening == Opening::Awaited as u8 || opening == Opening::Short as u8;
            if *acknowledges > acknowledged && listens {
                let rcv_nxt = FIRST.wrapping_add(counted);
                let unasked = before_last_segment(counted.into(), rcv_nxt, FIRST.wrapping_add(*at));
                opening = Opening::after(opening, unasked, *acknowledges) as u8;
            }
            (received, acknowledged) = (received + taken, acknowledged.max(*acknowledges));
        }
        opening
    }

    #[test]
    fn who_spoke_first_is_told_by_what_came_before_the_first_acknowledgement() {
        let table: [(&str, &[Segment], Opening); 13] = [
            ("nothing yet", &[], Opening::Awaited),
            ("a greeting", &[(0, 60, 0)], Opening::Awaited),
            ("a greeting, and then a request", &[(0, 60, 0), (60, 0, 30)], Opening::Server),
            ("a greeting, and the answer acknowledges the request", &[(0, 60, 0), (60, 40, 30)], Opening::Server),
            ("a greeting in two segments", &[(0, 60, 0), (60, 9, 0), (69, 40, 30)], Opening::Server),
            ("a greeting that is late for a caller that does not wait", &[(60, 40, 30)], Opening::Server),
            ("a request", &[(0, 0, 30)], Opening::Caller),
            ("a request, acknowledged by its answer", &[(0, 400, 30)], Opening::Caller),
            ("a request in two segments", &[(0, 0, 1448), (0, 400, 2000)], Opening::Caller),
            ("two requests", &[(0, 0, 30), (0, 400, 30), (400, 400, 60)], Opening::Caller),
            ("a request for encryption, and a refusal", &[(0, 1, 8), (1, 0, 80)], Opening::Postgres),
            ("the same, acknowledged at once", &[(0, 0, 8), (0, 1, 8), (1, 324, 80)], Opening::Postgres),
            ("a short request", &[(0, 0, 8), (0, 7, 8), (7, 7, 16)], Opening::Caller),
        ];
        for (what, segments, expected) in table {
            for fast in [false, true] {
                assert_eq!(opening(segments, fast), expected as u8, "{what}, {fast}");
            }
        }
    }

    #[test]
    fn a_session_is_what_is_not_known_to_be_none() {
        let mut record = ConnectionRecord {
            frontend: [0; 4],
            backend: [0; 4],
            frontend_port: 0,
            backend_port: 0,
            protocol: TCP,
            phase: Phase::Established as u8,
            notes: HAS_FLOWS | LISTENS,
            service_id: 0,
            backend_id: 0,
            pid: 0,
            seen: 0,
            since: 0,
        };
        let silent = Activity {
            now: 0,
            last_sent: 0,
            last_received: 0,
            bytes_sent: 0,
            bytes_received: 0,
            unacknowledged: 0,
            unread: 0,
            last_segment: 0,
            keepalive: 0,
            hung_up: 0,
            segments_sent: 0,
            spoke_for: 0,
            multipath: 0,
            written: 0,
            answered: 0,
            ping_pong: 0,
            acknowledged_late: 0,
        };
        let greeted = Activity { bytes_received: 60, ..silent };
        let spoken = Activity { bytes_sent: 30, ..greeted };
        for (opening, expected) in [
            (Opening::Unknown, Session::Unknown),
            (Opening::Awaited, Session::Unknown),
            (Opening::Short, Session::Unknown),
            (Opening::Caller, Session::None),
            (Opening::Server, Session::ServerFirst),
            (Opening::Postgres, Session::Postgres),
        ] {
            record.note_opening(opening);
            assert_eq!((record.opening(), record.notes & !MASK), (opening as u8, HAS_FLOWS | LISTENS));
            assert_eq!(record.session(&spoken), expected, "{opening:?}");
            assert_eq!(record.session(&greeted), Session::ServerFirst, "{opening:?}");
            assert_eq!(record.session(&silent), Session::None, "{opening:?}");
            assert_eq!(record.session(&Activity { hung_up: 1, ..spoken }), Session::None, "{opening:?}");
        }
    }
}
