//! Whether a connection has a request out or sits idle: one rule for the agent's listing and for whoever closes idle
//! connections under the socket lock.

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
}

/// What can be said of a connection at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flight {
    /// A request is out, or an answer was not read to its end.
    InFlight,
    /// The last word was the peer's, and the application has read it.
    Idle,
    /// Both jiffy times are the same (4 ms at 250 Hz), or nothing was said yet: only quiet tells.
    Unclear,
}

/// An [`Flight::Unclear`] connection counts as busy until it was quiet for this many times the time after which an
/// idle one may be closed.
pub const UNCLEAR_PATIENCE: u32 = 4;

impl Activity {
    /// The rule, first line that fits:
    ///
    /// | the socket shows | it is |
    /// |---|---|
    /// | bytes unacknowledged or unread | in flight |
    /// | nothing sent and nothing received | unclear: the first request or a greeting may be on its way |
    /// | something sent, nothing received | in flight |
    /// | sent later than received | in flight |
    /// | received later than sent | idle |
    /// | both in the same jiffy | unclear |
    #[inline(always)]
    pub const fn flight(&self) -> Flight {
        if self.unacknowledged > 0 || self.unread > 0 {
            return Flight::InFlight;
        }
        if self.bytes_received == 0 {
            return if self.bytes_sent == 0 { Flight::Unclear } else { Flight::InFlight };
        }
        let lead = self.last_sent.wrapping_sub(self.last_received) as i32;
        if lead > 0 {
            Flight::InFlight
        } else if lead < 0 {
            Flight::Idle
        } else {
            Flight::Unclear
        }
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
    pub const fn is_busy(&self, patience: u32) -> bool {
        match self.flight() {
            Flight::InFlight => true,
            Flight::Idle => false,
            Flight::Unclear => self.quiet() < patience.saturating_mul(UNCLEAR_PATIENCE),
        }
    }
}

#[inline(always)]
const fn since(now: u32, then: u32) -> u32 {
    let elapsed = now.wrapping_sub(then);
    if elapsed as i32 >= 0 { elapsed } else { 0 }
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
    };

    #[test]
    fn every_line_of_the_rule() {
        let table = [
            ("answered and read", ANSWERED, Flight::Idle),
            ("not acknowledged", Activity { unacknowledged: 1, ..ANSWERED }, Flight::InFlight),
            ("answer not read", Activity { unread: 1, ..ANSWERED }, Flight::InFlight),
            ("just established", Activity { bytes_sent: 0, bytes_received: 0, ..ANSWERED }, Flight::Unclear),
            ("first request out", Activity { bytes_received: 0, ..ANSWERED }, Flight::InFlight),
            ("next request out", Activity { last_sent: 511, ..ANSWERED }, Flight::InFlight),
            ("in one jiffy", Activity { last_sent: 510, ..ANSWERED }, Flight::Unclear),
            ("pushed by the server", Activity { bytes_sent: 0, ..ANSWERED }, Flight::Idle),
            (
                "request out, jiffies wrapped",
                Activity { last_sent: 3, last_received: u32::MAX, ..ANSWERED },
                Flight::InFlight,
            ),
            ("answered, jiffies wrapped", Activity { last_sent: u32::MAX, last_received: 3, ..ANSWERED }, Flight::Idle),
        ];
        for (what, activity, expected) in table {
            assert_eq!(activity.flight(), expected, "{what}");
        }
    }

    #[test]
    fn quiet_is_counted_from_the_last_word_and_never_wraps() {
        assert_eq!(ANSWERED.quiet(), 490);
        assert_eq!(Activity { now: 5, last_sent: u32::MAX - 4, last_received: 0, ..ANSWERED }.quiet(), 5);
        assert_eq!(Activity { now: 509, ..ANSWERED }.quiet(), 0, "received on another CPU in between");
    }

    #[test]
    fn what_is_unclear_is_busy_until_it_was_quiet_for_long() {
        let unclear = Activity { last_sent: 510, ..ANSWERED };
        assert!(unclear.is_busy(123), "490 jiffies of quiet are less than 4 x 123");
        assert!(!unclear.is_busy(122));
        assert!(!ANSWERED.is_busy(u32::MAX));
        assert!(Activity { unread: 1, ..ANSWERED }.is_busy(0));
    }
}
