//! Whether a connection has a request out or sits idle: one rule for the agent's listing and for the programs that count
//! and close the connections of a draining backend.

/// What a socket tells about its traffic. Times are jiffies, the low 32 bits, and may wrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Activity {
    pub now: u32,
    /// `tcp_sock.lsndtime`: when data was last sent; the handshake before that.
    pub last_sent: u32,
    /// `icsk_ack.lrcvtime`: when data was last received; the handshake before that.
    pub last_received: u32,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Written by the application and not acknowledged by the peer, in bytes.
    pub unacknowledged: u32,
    /// Received and not read by the application, in bytes.
    pub unread: u32,
    /// Length of the last segment that the peer sent, a FIN included: `rcv_nxt - snd_wl1`. 0: it had no data and only
    /// acknowledged, or answered a keep-alive probe. More than `i32::MAX`: segments before it are missing.
    pub last_segment: u32,
    /// Quiet after which keep-alive probes go out, in jiffies; 0: they never do.
    pub keepalive: u32,
    /// 1 when the peer has sent its FIN: it says no more. No bool: the kernel refuses the type information (BTF) of an
    /// `Option` that hides in one.
    pub hung_up: u32,
    /// `tcp_sock.data_segs_out`: segments with data sent, sent again included.
    pub segments_sent: u32,
    /// From the establishment to the last data that went either way, in ms; `u32::MAX` when that is not known.
    pub spoke_for: u32,
    /// 1 when it is one path of an MPTCP connection: its owner does not learn that it was closed.
    pub multipath: u32,
}

/// Keep-alive time assumed for sockets that use the system's (`net.ipv4.tcp_keepalive_time`, two hours by default), in
/// seconds.
pub const LEAST_KEEPALIVE: u32 = 60;

/// Who speaks first: callers ask, servers answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Caller,
    Server,
}

/// What can be said of a connection at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// A request is out, or an answer was not read to its end.
    InFlight,
    /// The last word was the answer, and it was read.
    Idle,
    /// Nothing was said yet, or what was said last cannot be told: only quiet tells.
    Unclear,
}

/// An [`Flight::Unclear`] connection counts as busy until it was quiet for this many times the time after which an
/// idle one may be closed.
pub const UNCLEAR_PATIENCE: u32 = 4;

/// A conversation that ended this soon after the establishment, in ms, may be a TLS handshake with the first request
/// right behind it.
pub const EARLY: u32 = 1000;
/// Most segments of such a handshake, where the time of the establishment is not known.
const HANDSHAKE_SEGMENTS: u32 = 8;
/// Least bytes of each side of it: a client sends its hello and Finished; a server that resumes an earlier session
/// sends its hello, its Finished and a short ticket (320 bytes with OpenSSL).
const HANDSHAKE: u64 = 200;

impl Activity {
    /// The same without FINs, which take a sequence number and are no data. `state` as in `include/net/tcp_states.h`.
    #[inline(always)]
    pub const fn without_fin(self, state: u32) -> Self {
        const FIN_WAIT1: u32 = 4;
        const CLOSE_WAIT: u32 = 8;
        const LAST_ACK: u32 = 9;
        const CLOSING: u32 = 11;
        let sent = matches!(state, FIN_WAIT1 | LAST_ACK | CLOSING) as u32;
        let received = matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING) as u32;
        Self {
            unacknowledged: self.unacknowledged.saturating_sub(sent),
            unread: self.unread.saturating_sub(received),
            last_segment: self.last_segment.saturating_sub(received),
            hung_up: received,
            ..self
        }
    }

    /// The same of a connection that was established at `since`; `clock` is the time now, both in ns of one clock.
    #[inline(always)]
    pub const fn begun(self, since: u64, clock: u64, hz: u32) -> Self {
        let age = clock.saturating_sub(since) / 1_000_000;
        let quiet = self.quiet() as u64 * 1000 / if hz == 0 { 1 } else { hz as u64 };
        let spoke_for = age.saturating_sub(quiet);
        Self { spoke_for: if spoke_for > u32::MAX as u64 { u32::MAX } else { spoke_for as u32 }, ..self }
    }

    /// The rule for the caller's side, first line that fits; the server's is the same with the roles exchanged:
    ///
    /// | the socket shows | it is |
    /// |---|---|
    /// | bytes unacknowledged, unread or missing | in flight |
    /// | the server has closed its side (a caller that has may still wait for its answer) | idle |
    /// | nothing sent and nothing received | unclear: the first request or a greeting may be on its way |
    /// | sent and nothing received | in flight |
    /// | the peer's last segment only acknowledged, and no keep-alive probe made it do that | in flight |
    /// | sent in a later jiffy than received | in flight |
    /// | received in a later jiffy than sent | idle, but see below |
    /// | both in the same jiffy, and the peer's last segment had data | idle, but see below |
    /// | both in the same jiffy, and keep-alive probes have blurred the rest | unclear |
    ///
    /// A TLS 1.3 server sends session tickets as soon as the handshake is over; a caller that has sent its first request
    /// by then seems to be answered. So what would be idle is unclear when everything was said within [`EARLY`] ms of the
    /// establishment, in two segments or more, and was as much as a handshake at least. An accepted connection does not
    /// tell when it was established: few segments say the same.
    ///
    /// It is a heuristic: whatever the peer says last counts as the answer. That is wrong in the pause of an answer in
    /// parts, after the first of two answers whose requests went out in one segment, and after words that are no answer
    /// (HTTP/2 frames of control).
    #[inline(always)]
    pub const fn flight(&self, side: Side) -> Flight {
        let is_missing = (self.last_segment as i32) < 0;
        if self.unacknowledged > 0 || self.unread > 0 || is_missing {
            return Flight::InFlight;
        }
        if self.hung_up != 0 && matches!(side, Side::Caller) {
            return Flight::Idle;
        }
        let (asked, answered) = match side {
            Side::Caller => (self.bytes_sent, self.bytes_received),
            Side::Server => (self.bytes_received, self.bytes_sent),
        };
        if answered == 0 {
            return if asked == 0 { Flight::Unclear } else { Flight::InFlight };
        }
        let clear = self.keepalive == 0 || self.quiet() < self.keepalive;
        let acknowledged_last = self.bytes_sent > 0 && self.last_segment == 0;
        let (lead, asked_last, answered_last) = match side {
            Side::Caller => (
                self.last_sent.wrapping_sub(self.last_received) as i32,
                acknowledged_last && clear,
                self.last_segment > 0,
            ),
            // A FIN after the request hides how long that was.
            Side::Server => (
                self.last_received.wrapping_sub(self.last_sent) as i32,
                self.last_segment > 0,
                acknowledged_last && clear && self.hung_up == 0,
            ),
        };
        if asked_last || lead > 0 {
            Flight::InFlight
        } else if (lead < 0 || answered_last) && !self.may_be_handshake() {
            Flight::Idle
        } else {
            Flight::Unclear
        }
    }

    #[inline(always)]
    const fn may_be_handshake(&self) -> bool {
        let is_early =
            if self.spoke_for == u32::MAX { self.segments_sent <= HANDSHAKE_SEGMENTS } else { self.spoke_for < EARLY };
        is_early && self.segments_sent > 1 && self.bytes_sent >= HANDSHAKE && self.bytes_received >= HANDSHAKE
    }

    /// Jiffies since data last went either way. A stamp that another CPU set after `now` was read counts as 0.
    #[inline(always)]
    pub const fn quiet(&self) -> u32 {
        let since_sent = since(self.now, self.last_sent);
        let since_received = since(self.now, self.last_received);
        if since_sent < since_received { since_sent } else { since_received }
    }

    /// Whether closing this connection could lose a request, when idle ones are closed after `patience` jiffies.
    #[inline(always)]
    pub const fn is_busy(&self, side: Side, patience: u32) -> bool {
        match self.flight(side) {
            Flight::InFlight => true,
            Flight::Idle => false,
            Flight::Unclear => self.quiet() < patience.saturating_mul(UNCLEAR_PATIENCE),
        }
    }

    /// Whether it may be closed when idle ones are closed after `patience` jiffies of quiet.
    #[inline(always)]
    pub const fn may_close(&self, side: Side, patience: u32) -> bool {
        self.multipath == 0 && !self.is_busy(side, patience) && self.quiet() >= patience
    }
}

#[inline(always)]
const fn since(now: u32, then: u32) -> u32 {
    /// A stamp that seems this little later than `now`, in jiffies, was set after the clock was read.
    const LATE: u32 = 1 << 16;
    let elapsed = now.wrapping_sub(then);
    if elapsed > u32::MAX - LATE { 0 } else { elapsed }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWERED: Activity = Activity {
        now: 1000,
        last_sent: 500,
        last_received: 510,
        bytes_sent: 80,
        bytes_received: 4096,
        unacknowledged: 0,
        unread: 0,
        last_segment: 4096,
        keepalive: 0,
        hung_up: 0,
        segments_sent: 5,
        spoke_for: 60_000,
        multipath: 0,
    };

    /// What a caller sees after a TLS handshake, whether its first request is answered or not.
    const TICKETS: Activity =
        Activity { bytes_sent: 700, bytes_received: 1500, segments_sent: 3, spoke_for: 12, ..ANSWERED };

    #[test]
    fn every_line_of_the_rule() {
        let same_jiffy = Activity { last_sent: 510, ..ANSWERED };
        let table = [
            ("answered and read", ANSWERED, Flight::Idle),
            ("not acknowledged", Activity { unacknowledged: 1, ..ANSWERED }, Flight::InFlight),
            ("answer not read", Activity { unread: 1, ..ANSWERED }, Flight::InFlight),
            ("a hole in the answer", Activity { last_segment: 0_u32.wrapping_sub(1448), ..ANSWERED }, Flight::InFlight),
            ("just established", Activity { bytes_sent: 0, bytes_received: 0, ..ANSWERED }, Flight::Unclear),
            ("first request out", Activity { bytes_received: 0, ..ANSWERED }, Flight::InFlight),
            ("next request out", Activity { last_sent: 511, ..ANSWERED }, Flight::InFlight),
            (
                "next request out and acknowledged",
                Activity { last_sent: 511, last_segment: 0, ..ANSWERED },
                Flight::InFlight,
            ),
            ("answered in one jiffy", same_jiffy, Flight::Idle),
            (
                "next request in the jiffy of the answer, acknowledged after it",
                Activity { last_segment: 0, ..same_jiffy },
                Flight::InFlight,
            ),
            (
                "the same, long ago and kept alive",
                Activity { last_segment: 0, keepalive: 490, ..same_jiffy },
                Flight::Unclear,
            ),
            (
                "the same, before the first probe",
                Activity { last_segment: 0, keepalive: 491, ..same_jiffy },
                Flight::InFlight,
            ),
            ("answered, then kept alive", Activity { last_segment: 0, keepalive: 490, ..ANSWERED }, Flight::Idle),
            (
                "two requests, the second acknowledged after the first answer",
                Activity { last_segment: 0, ..ANSWERED },
                Flight::InFlight,
            ),
            ("pushed by the server", Activity { bytes_sent: 0, ..ANSWERED }, Flight::Idle),
            (
                "request out, jiffies wrapped",
                Activity { last_sent: 3, last_received: u32::MAX, ..ANSWERED },
                Flight::InFlight,
            ),
            ("answered, jiffies wrapped", Activity { last_sent: u32::MAX, last_received: 3, ..ANSWERED }, Flight::Idle),
            ("tickets, or the answer", TICKETS, Flight::Unclear),
            ("tickets in the same jiffy", Activity { last_sent: 510, ..TICKETS }, Flight::Unclear),
            ("a session resumed", Activity { bytes_received: 320, ..TICKETS }, Flight::Unclear),
            ("tickets long ago, then an answer", Activity { spoke_for: EARLY, ..TICKETS }, Flight::Idle),
            ("a request in one segment, answered", Activity { segments_sent: 1, ..TICKETS }, Flight::Idle),
            ("sent less than a handshake", Activity { bytes_sent: 199, ..TICKETS }, Flight::Idle),
            ("received less than a handshake", Activity { bytes_received: 199, ..TICKETS }, Flight::Idle),
            ("tickets, then the first request", Activity { last_sent: 511, ..TICKETS }, Flight::InFlight),
        ];
        for (what, activity, expected) in table {
            assert_eq!(activity.flight(Side::Caller), expected, "{what}");
        }
    }

    #[test]
    fn a_server_sees_the_same_with_the_roles_exchanged() {
        let answered = Activity {
            last_sent: 510,
            last_received: 500,
            bytes_sent: 4096,
            bytes_received: 80,
            last_segment: 0,
            ..ANSWERED
        };
        let accepted = Activity { spoke_for: u32::MAX, ..answered };
        let same_jiffy = Activity { last_received: 510, ..answered };
        let table = [
            ("answered", answered, Flight::Idle),
            ("answer not acknowledged", Activity { unacknowledged: 1, ..answered }, Flight::InFlight),
            ("request not read", Activity { unread: 1, ..answered }, Flight::InFlight),
            ("accepted, nothing said", Activity { bytes_sent: 0, bytes_received: 0, ..answered }, Flight::Unclear),
            ("first request in", Activity { bytes_sent: 0, ..answered }, Flight::InFlight),
            ("next request in", Activity { last_received: 511, ..answered }, Flight::InFlight),
            ("answered in one jiffy", same_jiffy, Flight::Idle),
            ("next request in the jiffy of the answer", Activity { last_segment: 80, ..same_jiffy }, Flight::InFlight),
            ("answered in one jiffy, kept alive", Activity { keepalive: 490, ..same_jiffy }, Flight::Unclear),
            ("it greets", Activity { bytes_received: 0, ..answered }, Flight::Idle),
            ("answered, or tickets sent", Activity { bytes_received: 700, ..accepted }, Flight::Unclear),
            ("too much for tickets", Activity { bytes_received: 700, segments_sent: 9, ..accepted }, Flight::Idle),
        ];
        for (what, activity, expected) in table {
            assert_eq!(activity.flight(Side::Server), expected, "{what}");
        }
    }

    #[test]
    fn a_fin_is_no_data() {
        let (fin_wait1, close_wait) = (4, 8);
        let fin_out = Activity { unacknowledged: 1, ..ANSWERED };
        assert_eq!(fin_out.without_fin(fin_wait1).flight(Side::Caller), Flight::Idle);
        // It came in a segment of its own, as after a time limit of the server.
        let fin_in = Activity { unread: 1, last_segment: 1, ..ANSWERED };
        assert_eq!(fin_in.without_fin(close_wait).flight(Side::Caller), Flight::Idle);
        let unanswered = Activity { last_sent: 600, ..fin_in };
        assert_eq!(unanswered.without_fin(close_wait).flight(Side::Caller), Flight::Idle);
        assert_eq!(fin_in.without_fin(1).flight(Side::Caller), Flight::InFlight);
        assert_eq!(Activity { unread: 2, ..ANSWERED }.without_fin(close_wait).flight(Side::Caller), Flight::InFlight);
    }

    #[test]
    fn quiet_is_counted_from_the_last_word_and_never_wraps() {
        assert_eq!(ANSWERED.quiet(), 490);
        assert_eq!(Activity { now: 5, last_sent: u32::MAX - 4, last_received: 0, ..ANSWERED }.quiet(), 5);
        assert_eq!(Activity { now: 509, ..ANSWERED }.quiet(), 0, "received on another CPU in between");
    }

    #[test]
    fn a_server_is_done_with_a_caller_that_was_answered_and_has_closed() {
        let close_wait = 8;
        let server = Activity { last_sent: 510, last_received: 500, unread: 1, last_segment: 1, ..ANSWERED };
        assert_eq!(server.without_fin(close_wait).flight(Side::Server), Flight::Idle);
        let asked = Activity { last_received: 511, ..server };
        assert_eq!(asked.without_fin(close_wait).flight(Side::Server), Flight::InFlight);
        let with_the_request = Activity { last_received: 510, last_segment: 81, ..server };
        assert_eq!(with_the_request.without_fin(close_wait).flight(Side::Server), Flight::InFlight);
        let same_jiffy = Activity { last_received: 510, ..server };
        assert_eq!(same_jiffy.without_fin(close_wait).flight(Side::Server), Flight::Unclear);
    }

    #[test]
    fn a_conversation_lasts_from_the_establishment_to_the_last_word() {
        let (second, hz) = (1_000_000_000, 250);
        // 490 jiffies of quiet are 1960 ms.
        assert_eq!(ANSWERED.begun(second, 3 * second, hz).spoke_for, 40);
        assert_eq!(ANSWERED.begun(second, 100 * second, hz).spoke_for, 97_040);
        assert_eq!(ANSWERED.begun(second, second, hz).spoke_for, 0);
    }

    #[test]
    fn what_is_unclear_is_busy_until_it_was_quiet_for_long() {
        let unclear = Activity { last_sent: 510, last_segment: 0, keepalive: 1, ..ANSWERED };
        assert!(unclear.is_busy(Side::Caller, 123), "490 jiffies of quiet are less than 4 x 123");
        assert!(!unclear.is_busy(Side::Caller, 122));
        assert!(!ANSWERED.is_busy(Side::Caller, u32::MAX));
        assert!(Activity { unread: 1, ..ANSWERED }.is_busy(Side::Caller, 0));
    }

    #[test]
    fn only_what_was_quiet_for_long_enough_may_be_closed() {
        assert!(ANSWERED.may_close(Side::Caller, 490));
        assert!(!ANSWERED.may_close(Side::Caller, 491));
        let unclear = Activity { last_sent: 510, last_segment: 0, keepalive: 1, ..ANSWERED };
        assert!(!unclear.may_close(Side::Caller, 490));
        assert!(!Activity { unacknowledged: 1, ..ANSWERED }.may_close(Side::Caller, 0));
        assert!(!Activity { multipath: 1, ..ANSWERED }.may_close(Side::Caller, 0));
    }
}
