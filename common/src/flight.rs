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
    /// Number of the next byte that the application writes: `tcp_sock.write_seq`.
    pub written: u32,
    /// 1 when the programs saw an answer to all that was written, see [`Activity::shows_answer`].
    pub answered: u32,
    /// `icsk_ack.pingpong`: not 0 after data was sent right after some was received (within 40 ms), until an acknowledgement
    /// has waited in vain for data to go with. [`UNKNOWN`] where the kernel does not have it.
    pub ping_pong: u32,
    /// 1 when the peer acknowledged data clearly later than it sent some, see [`is_late`]: a request after the last answer.
    pub acknowledged_late: u32,
}

/// Of [`Activity::ping_pong`].
pub const UNKNOWN: u32 = u32::MAX;

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
    /// What was said last cannot be told: as good as in flight.
    Unclear,
    /// Nothing was said yet, or no more than a TLS handshake says: only quiet tells.
    Beginning,
}

/// A [`Flight::Beginning`] connection counts as busy until it was quiet for this many times the time after which an
/// idle one may be closed.
pub const BEGINNING_PATIENCE: u32 = 4;

/// An acknowledgement came clearly later than data when it came so many ms later: jiffies are up to 10 ms each, and a
/// virtual machine may be late in counting them. An acknowledgement that waits for an answer to go with waits for 40.
const CLEARLY: u64 = 20;

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
        const FIN_WAIT2: u32 = 5;
        const CLOSE_WAIT: u32 = 8;
        const LAST_ACK: u32 = 9;
        const CLOSING: u32 = 11;
        let sent = matches!(state, FIN_WAIT1 | LAST_ACK | CLOSING) as u32;
        let received = matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING) as u32;
        let written = matches!(state, FIN_WAIT1 | FIN_WAIT2 | LAST_ACK | CLOSING) as u32;
        Self {
            unacknowledged: self.unacknowledged.saturating_sub(sent),
            unread: self.unread.saturating_sub(received),
            last_segment: self.last_segment.saturating_sub(received),
            hung_up: received,
            written: self.written.wrapping_sub(written),
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
    /// | nothing sent and nothing received | a beginning: the first request or a greeting may be on its way |
    /// | sent and nothing received | in flight |
    /// | sent in a later jiffy than received | in flight |
    /// | the peer's last segment only acknowledged, and no keep-alive probe made it do that | in flight |
    /// | the same, and the peer acknowledged data clearly later than it sent some | in flight |
    /// | received in a later jiffy than sent | idle, but see below |
    /// | both in the same jiffy, and the peer's last segment had data | idle, but see below |
    /// | both in the same jiffy, and so it was when a program looked before the first keep-alive probe | idle, but see below |
    /// | both in the same jiffy, and it was not the sending that came right after (no ping-pong) | idle, but see below |
    /// | both in the same jiffy, and keep-alive probes have blurred the rest | unclear |
    ///
    /// A TLS 1.3 server sends session tickets as soon as the handshake is over; a caller that has sent its first request
    /// by then seems to be answered. So what would be idle is a beginning when everything was said within [`EARLY`] ms of
    /// the establishment, in two segments or more, and was as much as a handshake at least. An accepted connection does
    /// not tell when it was established: few segments say the same.
    ///
    /// It is a heuristic: whatever the peer says last counts as the answer. That is wrong in the pause of an answer in
    /// parts, after the first of two answers whose requests went out in one segment, and after words that are no answer
    /// (HTTP/2 frames of control).
    #[inline(always)]
    pub const fn flight(&self, side: Side) -> Flight {
        if self.unacknowledged > 0 || self.unread > 0 || self.is_missing() {
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
            return if asked == 0 { Flight::Beginning } else { Flight::InFlight };
        }
        let lead = self.lead();
        // A FIN after the last word of a peer that has closed hides whether that had data.
        let tells = (self.keepalive == 0 || self.quiet() < self.keepalive) && self.hung_up == 0;
        let acknowledged_last = self.bytes_sent > 0 && self.last_segment == 0;
        let sent_last = lead > 0 || (acknowledged_last && (tells || self.acknowledged_late != 0));
        let received_last =
            lead < 0 || self.last_segment > 0 || self.answered != 0 || (lead == 0 && self.ping_pong == 0);
        let (asked_last, answered_last) = match side {
            Side::Caller => (sent_last, received_last),
            Side::Server => (received_last, sent_last),
        };
        match (asked_last, answered_last) {
            (true, _) => Flight::InFlight,
            (false, true) if self.may_be_handshake() => Flight::Beginning,
            (false, true) => Flight::Idle,
            (false, false) => Flight::Unclear,
        }
    }

    /// Whether a caller's socket shows by itself that the peer's last word had data and came after all that was sent. After
    /// a keep-alive probe it does not show that any more.
    #[inline(always)]
    pub const fn shows_answer(&self) -> bool {
        self.unacknowledged == 0
            && self.bytes_received > 0
            && self.last_segment > 0
            && !self.is_missing()
            && self.lead() <= 0
    }

    /// Jiffies by which data was sent later than received.
    #[inline(always)]
    const fn lead(&self) -> i32 {
        self.last_sent.wrapping_sub(self.last_received) as i32
    }

    /// Whether segments before the last one have not arrived.
    #[inline(always)]
    const fn is_missing(&self) -> bool {
        (self.last_segment as i32) < 0
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
            Flight::InFlight | Flight::Unclear => true,
            Flight::Idle => false,
            Flight::Beginning => self.quiet() < patience.saturating_mul(BEGINNING_PATIENCE),
        }
    }

    /// Whether it may be closed when idle ones are closed after `patience` jiffies of quiet.
    #[inline(always)]
    pub const fn may_close(&self, side: Side, patience: u32) -> bool {
        self.multipath == 0 && !self.is_busy(side, patience) && self.quiet() >= patience
    }
}

/// Whether an acknowledgement `acknowledged` ms ago came clearly later than data in the jiffy `last_received`.
#[inline(always)]
pub const fn is_late(acknowledged: u64, now: u32, last_received: u32, hz: u32) -> bool {
    let received = since(now, last_received) as u64 * 1000 / if hz == 0 { 1 } else { hz as u64 };
    acknowledged + CLEARLY < received
}

#[inline(always)]
const fn since(now: u32, then: u32) -> u32 {
    /// A stamp that seems this little later than `now`, in jiffies, was set after the clock was read.
    const LATE: u32 = 1 << 16;
    let elapsed = now.wrapping_sub(then);
    if elapsed > u32::MAX - LATE { 0 } else { elapsed }
}

#[cfg(test)]
mod histories;

#[cfg(test)]
mod tests;
