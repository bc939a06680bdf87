//! The rule against histories: connections between two sockets whose members move as those of the kernel's TCP do, with delayed
//! acknowledgements, keep-alive probes, zero windows, lost and reordered segments, and segments that are sent again.

extern crate std;

use std::vec::Vec;

use super::{Activity, Side, UNKNOWN, is_late};

/// Jiffies a second, and their length in us.
const HZ: u32 = 250;
const JIFFY: u64 = 1_000_000 / HZ as u64;
const SEGMENT: u32 = 1448;
const BUFFER: u32 = 8 * SEGMENT;
/// Times in us.
const DELAYED: u64 = 40_000;
const DELAYED_JIFFIES: u32 = (DELAYED / JIFFY) as u32;
const SECOND: u64 = 1_000_000;
const NEVER: u64 = u64::MAX;
/// An idle connection may be closed after so many jiffies of quiet, 100 ms and 2 s.
const PATIENCE: [u32; 2] = [HZ / 10, 2 * HZ];

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }

    fn one_in(&mut self, times: u64) -> bool {
        times != 0 && self.below(times) == 0
    }
}

/// What makes one history differ from another.
#[derive(Clone, Copy, Debug)]
struct Manner {
    /// Of the caller and of the server, in us; 0: they send no probes.
    keepalive: [u64; 2],
    /// One segment of so many gets lost; 0: none.
    loss: u64,
    /// Whether segments may overtake each other, and are sent again too early.
    hasty: bool,
    /// Whether the program that looks before a probe is there.
    remembers: bool,
}

#[derive(Clone, Copy)]
struct Segment {
    to: usize,
    at: u64,
    seq: u32,
    length: u32,
    ack: u32,
    window: u32,
}

/// The members of a socket, as the kernel calls them, and its timers.
#[derive(Clone, Default)]
struct Socket {
    write_seq: u32,
    snd_nxt: u32,
    snd_una: u32,
    snd_wnd: u32,
    snd_wl1: u32,
    rcv_nxt: u32,
    rcv_wup: u32,
    copied_seq: u32,
    lsndtime: u32,
    lrcvtime: u32,
    delivered_mstamp: u64,
    bytes_sent: u64,
    bytes_received: u64,
    data_segs_out: u32,
    ping_pong: u32,
    early: Vec<(u32, u32)>,
    /// As in the record of a steered connection.
    seen: u32,
    quick: u32,
    heard: u64,
    delayed_at: u64,
    again_at: u64,
    wait: u64,
    probe_at: u64,
}

struct History {
    manner: Manner,
    random: Random,
    now: u64,
    /// Jiffies at time 0.
    jiffies: u32,
    sockets: [Socket; 2],
    wire: Vec<Segment>,
    last_arrival: u64,
    /// Where the last request and its answer begin and end.
    request: (u32, u32),
    answer: (u32, u32),
    /// Whether the caller waits for the answer, or reads it.
    is_asking: bool,
    /// When the caller reads, when the server answers, when the caller asks again.
    reads_at: u64,
    answers_at: u64,
    asks_at: u64,
    requests_left: u32,
    /// Whether the caller has sent a probe since it asked.
    is_probed: bool,
    /// Whether it got an acknowledgement without data from behind the answer, and not because of a probe: nothing tells that
    /// from one of a request.
    is_echoed: bool,
}

const CALLER: usize = 0;
const SERVER: usize = 1;

fn after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

impl Socket {
    fn window(&self) -> u32 {
        BUFFER.saturating_sub(self.rcv_nxt.wrapping_sub(self.copied_seq))
    }
}

impl History {
    fn new(seed: u64, manner: Manner) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        let jiffies = u32::MAX - random.below(20_000) as u32;
        let first = [random.below(1 << 32) as u32, u32::MAX - random.below(9000) as u32];
        let socket = |own: u32, peer: u32, keepalive: u64| Socket {
            write_seq: own,
            snd_nxt: own,
            snd_una: own,
            snd_wnd: BUFFER,
            snd_wl1: peer,
            rcv_nxt: peer,
            rcv_wup: peer,
            copied_seq: peer,
            lsndtime: jiffies,
            lrcvtime: jiffies,
            seen: own,
            quick: 16,
            delayed_at: NEVER,
            again_at: NEVER,
            wait: SECOND / 5,
            probe_at: if keepalive == 0 { NEVER } else { keepalive },
            ..Socket::default()
        };
        let sockets =
            [socket(first[0], first[1], manner.keepalive[0]), socket(first[1], first[0], manner.keepalive[1])];
        // Late enough that nothing of it may be a handshake.
        let asks_at = 2 * SECOND + random.below(SECOND);
        let requests_left = 1 + random.below(6) as u32;
        Self {
            manner,
            random,
            now: 0,
            jiffies,
            sockets,
            wire: Vec::new(),
            last_arrival: 0,
            request: (first[0], first[0]),
            answer: (first[1], first[1]),
            is_asking: false,
            reads_at: NEVER,
            answers_at: NEVER,
            asks_at,
            requests_left,
            is_probed: false,
            is_echoed: false,
        }
    }

    fn jiffy(&self) -> u32 {
        self.jiffies.wrapping_add((self.now / JIFFY) as u32)
    }

    /// What the programs see.
    fn activity(&self, which: usize) -> Activity {
        let socket = &self.sockets[which];
        let (now, acknowledged) = (self.jiffy(), (self.now - socket.delivered_mstamp) / 1000);
        Activity {
            now,
            last_sent: socket.lsndtime,
            last_received: socket.lrcvtime,
            bytes_sent: socket.bytes_sent,
            bytes_received: socket.bytes_received,
            unacknowledged: socket.write_seq.wrapping_sub(socket.snd_una),
            unread: socket.rcv_nxt.wrapping_sub(socket.copied_seq),
            last_segment: socket.rcv_nxt.wrapping_sub(socket.snd_wl1),
            keepalive: (self.manner.keepalive[which] / JIFFY) as u32,
            hung_up: 0,
            segments_sent: socket.data_segs_out,
            spoke_for: 2000,
            multipath: 0,
            written: socket.write_seq,
            answered: u32::from(which == CALLER && socket.seen == socket.write_seq),
            ping_pong: if self.manner.remembers { UNKNOWN } else { socket.ping_pong },
            acknowledged_late: u32::from(is_late(acknowledged, now, socket.lrcvtime, HZ)),
        }
    }

    fn send(&mut self, which: usize, seq: u32, length: u32) {
        let now = self.jiffy();
        let socket = &mut self.sockets[which];
        socket.rcv_wup = socket.rcv_nxt;
        socket.delayed_at = NEVER;
        socket.quick = socket.quick.saturating_sub(1);
        if length > 0 {
            socket.lsndtime = now;
            if socket.bytes_received > 0 && now.wrapping_sub(socket.lrcvtime) < DELAYED_JIFFIES {
                socket.ping_pong = 1;
            }
            socket.bytes_sent += u64::from(length);
            socket.data_segs_out += 1;
            if socket.again_at == NEVER {
                socket.again_at = self.now + if self.manner.hasty { 10_000 } else { socket.wait };
            }
        }
        let (ack, window) = (socket.rcv_nxt, socket.window());
        if self.random.one_in(self.manner.loss) {
            return;
        }
        let mut at = self.now + 20 + self.random.below(200);
        if self.manner.hasty && self.random.one_in(20) {
            at += self.random.below(12_000);
        } else {
            at = at.max(self.last_arrival + 1);
            self.last_arrival = at;
        }
        self.wire.push(Segment { to: 1 - which, at, seq, length, ack, window });
    }

    /// Sends what was written, as far as the window lets it.
    fn push(&mut self, which: usize) {
        loop {
            let socket = &self.sockets[which];
            let room = socket.snd_una.wrapping_add(socket.snd_wnd).wrapping_sub(socket.snd_nxt) as i32;
            let length = socket.write_seq.wrapping_sub(socket.snd_nxt).min(SEGMENT);
            if length == 0 || room < length as i32 {
                break;
            }
            let seq = socket.snd_nxt;
            self.sockets[which].snd_nxt = seq.wrapping_add(length);
            self.send(which, seq, length);
        }
        let socket = &mut self.sockets[which];
        if socket.write_seq != socket.snd_una && socket.again_at == NEVER {
            // The window is closed: it is probed.
            socket.again_at = self.now + socket.wait;
        }
    }

    fn write(&mut self, which: usize, length: u32) {
        let socket = &mut self.sockets[which];
        socket.write_seq = socket.write_seq.wrapping_add(length);
        self.push(which);
    }

    fn receive(&mut self, segment: Segment) {
        let (which, now, at) = (segment.to, self.jiffy(), self.now);
        let end = segment.seq.wrapping_add(segment.length);
        let socket = &mut self.sockets[which];
        socket.heard = at;
        if after(socket.rcv_wup, end) || after(segment.seq, socket.rcv_nxt.wrapping_add(socket.window())) {
            let seq = socket.snd_nxt;
            if segment.length > 0 {
                socket.ping_pong = 0;
            }
            self.send(which, seq, 0);
            return;
        }
        if after(segment.ack, socket.snd_nxt) {
            return;
        }
        let is_news = after(segment.ack, socket.snd_una);
        let is_wider = segment.seq == socket.snd_wl1 && segment.window > socket.snd_wnd;
        if is_news || after(segment.seq, socket.snd_wl1) || is_wider {
            socket.snd_wl1 = segment.seq;
            socket.snd_wnd = segment.window;
        }
        if is_news {
            socket.snd_una = segment.ack;
            socket.delivered_mstamp = at;
            socket.wait = SECOND / 5;
            socket.again_at = if socket.snd_una == socket.write_seq { NEVER } else { at + socket.wait };
        }
        let before = socket.rcv_nxt;
        if segment.length > 0 && after(segment.seq, socket.rcv_nxt) {
            socket.early.push((segment.seq, end));
            let seq = socket.snd_nxt;
            self.send(which, seq, 0);
        } else if segment.length > 0 && after(end, socket.rcv_nxt) {
            socket.rcv_nxt = end;
            while let Some(index) = socket.early.iter().position(|(from, _)| !after(*from, socket.rcv_nxt)) {
                let (_, to) = socket.early.swap_remove(index);
                if after(to, socket.rcv_nxt) {
                    socket.rcv_nxt = to;
                }
            }
            socket.bytes_received += u64::from(socket.rcv_nxt.wrapping_sub(before));
            socket.lrcvtime = now;
            let waiting = socket.rcv_nxt.wrapping_sub(socket.rcv_wup);
            let quick = socket.quick > 0 && socket.ping_pong == 0;
            if quick || waiting > SEGMENT || self.random.one_in(5) {
                let seq = socket.snd_nxt;
                self.send(which, seq, 0);
            } else if socket.delayed_at == NEVER {
                socket.delayed_at = at + DELAYED;
            }
            self.heard(which);
        } else if segment.length > 0 {
            // It was there already: its acknowledgement got lost, or it was sent again too early.
            socket.ping_pong = 0;
            let seq = socket.snd_nxt;
            self.send(which, seq, 0);
        } else if which == CALLER && end == self.answer.1 && end != self.answer.0 {
            self.is_echoed |= !self.is_probed;
        }
        self.push(which);
    }

    /// An application notices what has come.
    fn heard(&mut self, which: usize) {
        if which == CALLER {
            let slow = if self.random.one_in(8) { SECOND } else { 300 };
            self.reads_at = self.now + self.random.below(slow);
        } else {
            self.sockets[SERVER].copied_seq = self.sockets[SERVER].rcv_nxt;
            if self.sockets[SERVER].copied_seq == self.request.1 {
                let thinks = [100, 2000, 30_000, 300_000, 70 * SECOND][self.random.below(5) as usize];
                self.answers_at = self.now + self.random.below(thinks);
            }
        }
    }

    /// Whether closing now loses what a rule can know of: the caller waits, and no part of the answer is there and read. (A
    /// pause within an answer looks like its end.)
    fn must_stay(&self, side: Side) -> bool {
        let (caller, server) = (&self.sockets[CALLER], &self.sockets[SERVER]);
        let is_there = match side {
            Side::Caller => caller.rcv_nxt == self.answer.0 || caller.copied_seq != caller.rcv_nxt,
            Side::Server if server.rcv_nxt == self.request.0 => false,
            Side::Server => server.write_seq == self.answer.0 || server.write_seq != server.snd_una,
        };
        self.is_asking && is_there
    }

    /// Goes on to what happens next; false when nothing does before `until`, or nothing but probes where there is no limit.
    fn step(&mut self, until: u64) -> bool {
        let arrival = self.wire.iter().map(|segment| segment.at).min().unwrap_or(NEVER);
        let timers = self.sockets.iter().map(|socket| socket.delayed_at.min(socket.again_at)).min().unwrap_or(NEVER);
        let next = arrival.min(timers).min(self.reads_at).min(self.answers_at).min(self.asks_at);
        if next == NEVER && until == NEVER {
            return false;
        }
        let next = next.min(self.sockets[CALLER].probe_at).min(self.sockets[SERVER].probe_at);
        if next > until {
            return false;
        }
        self.now = next;
        if let Some(index) = self.wire.iter().position(|segment| segment.at == self.now) {
            let segment = self.wire.swap_remove(index);
            self.receive(segment);
        }
        self.timers(CALLER);
        self.timers(SERVER);
        if self.reads_at == self.now {
            self.reads_at = NEVER;
            self.read();
        }
        if self.answers_at == self.now {
            self.answers_at = NEVER;
            let longest = [100, 3000, 60_000][self.random.below(3) as usize];
            let length = 1 + self.random.below(longest) as u32;
            self.answer.1 = self.answer.0.wrapping_add(length);
            self.write(SERVER, length);
        }
        if self.asks_at == self.now {
            self.asks_at = NEVER;
            self.requests_left -= 1;
            (self.is_asking, self.is_probed, self.is_echoed) = (true, false, false);
            let longest = [100, 3000][self.random.below(2) as usize];
            let length = 1 + self.random.below(longest) as u32;
            self.request = (self.request.1, self.request.1.wrapping_add(length));
            self.answer.0 = self.answer.1;
            self.write(CALLER, length);
        }
        true
    }

    fn read(&mut self) {
        let was_closed = self.sockets[CALLER].window() < SEGMENT;
        let caller = &mut self.sockets[CALLER];
        caller.copied_seq = caller.rcv_nxt;
        let seq = caller.snd_nxt;
        if was_closed {
            self.send(CALLER, seq, 0);
        }
        if self.sockets[CALLER].copied_seq != self.answer.1 || self.answer.0 == self.answer.1 {
            return;
        }
        self.is_asking = false;
        if self.requests_left > 0 && self.asks_at == NEVER {
            let pause = [1, 300, 5000, 300_000, 40 * SECOND][self.random.below(5) as usize];
            self.asks_at = self.now + 1 + self.random.below(pause);
        }
    }

    fn timers(&mut self, which: usize) {
        let (now, keepalive) = (self.now, self.manner.keepalive[which]);
        let socket = &mut self.sockets[which];
        let (next, una) = (socket.snd_nxt, socket.snd_una);
        if socket.delayed_at == now {
            socket.ping_pong = 0;
            self.send(which, next, 0);
        }
        let socket = &mut self.sockets[which];
        if socket.again_at == now {
            socket.wait = (socket.wait * 2).min(2 * SECOND);
            socket.again_at = now + socket.wait;
            let length = next.wrapping_sub(una).min(SEGMENT);
            // With nothing out it is the window that is probed.
            let seq = if length == 0 { una.wrapping_sub(1) } else { una };
            self.send(which, seq, length);
        }
        if self.sockets[which].probe_at == now {
            let socket = &self.sockets[which];
            let quiet = now - socket.heard;
            if quiet < keepalive {
                self.sockets[which].probe_at = now - quiet + keepalive;
            } else {
                self.sockets[which].probe_at = now + SECOND;
                if self.sockets[which].write_seq == self.sockets[which].snd_una {
                    if which == CALLER && self.manner.remembers && self.activity(CALLER).shows_answer() {
                        self.sockets[CALLER].seen = self.sockets[CALLER].write_seq;
                    }
                    self.is_probed |= which == CALLER;
                    self.send(which, una.wrapping_sub(1), 0);
                }
            }
        }
    }

    /// Plays it to its end, and looks after every step. Returns what was left open though it was idle: (caller, server).
    fn play(mut self, seed: u64) -> (bool, bool) {
        let mut steps = 0;
        while self.step(NEVER) {
            steps += 1;
            assert!(steps < 200_000, "history {seed} has no end: {:?}", self.manner);
            self.look(seed);
            // And at some time before whatever comes next.
            let at = self.now;
            self.now += self.random.below(3 * SECOND);
            if self.quiet_until(self.now) {
                self.look(seed);
            }
            self.now = at;
        }
        assert!(!self.is_asking, "history {seed}: an answer never came: {:?}", self.manner);
        let end = self.now + 60 * SECOND;
        while self.step(end) {}
        self.now = end;
        let stays = |which, side| PATIENCE.iter().any(|patience| !self.activity(which).may_close(side, *patience));
        (stays(CALLER, Side::Caller) && !self.is_echoed, stays(SERVER, Side::Server))
    }

    fn quiet_until(&self, time: u64) -> bool {
        let timers = self.sockets.iter().flat_map(|socket| [socket.delayed_at, socket.again_at, socket.probe_at]);
        let arrivals = self.wire.iter().map(|segment| segment.at);
        timers.chain(arrivals).chain([self.reads_at, self.answers_at, self.asks_at]).all(|at| at > time)
    }

    fn look(&self, seed: u64) {
        for (which, side) in [(CALLER, Side::Caller), (SERVER, Side::Server)] {
            // An answer that is acknowledged twice hides the next request from the server's socket.
            if self.must_stay(side) && !(side == Side::Server && self.manner.hasty) {
                let activity = self.activity(which);
                for patience in PATIENCE {
                    assert!(
                        !activity.may_close(side, patience),
                        "history {seed}, at {} us: {side:?} closes a request in flight after {patience} jiffies: \
                         {activity:?}, {:?}",
                        self.now,
                        self.manner,
                    );
                }
            }
        }
    }
}

const KEEPALIVE: [u64; 5] = [0, SECOND, 2 * SECOND, 15 * SECOND, 45 * SECOND];

fn histories(count: u64, manner: impl Fn(&mut Random) -> Manner) -> (u64, u64) {
    let (mut callers, mut servers) = (0, 0);
    for seed in 1..=count {
        let mut random = Random(seed | 1 << 40);
        random.below(1);
        let (caller, server) = History::new(seed, manner(&mut random)).play(seed);
        callers += u64::from(caller);
        servers += u64::from(server);
    }
    (callers, servers)
}

fn keepalive(random: &mut Random) -> [u64; 2] {
    [KEEPALIVE[random.below(5) as usize], KEEPALIVE[random.below(5) as usize]]
}

#[test]
fn no_request_in_flight_is_closed_and_what_is_idle_is() {
    let manner = |random: &mut Random| Manner { keepalive: keepalive(random), loss: 0, hasty: false, remembers: true };
    let (callers, _) = histories(5000, manner);
    assert_eq!(callers, 0, "idle connections stay open");
}

#[test]
fn nor_where_segments_are_lost_overtake_each_other_and_are_sent_again() {
    let manner = |random: &mut Random| Manner { keepalive: keepalive(random), loss: 30, hasty: true, remembers: true };
    let (callers, _) = histories(5000, manner);
    assert_eq!(callers, 0, "idle connections stay open");
}

#[test]
fn nor_where_no_program_looks_before_a_probe() {
    let manner = |random: &mut Random| Manner { keepalive: keepalive(random), loss: 0, hasty: false, remembers: false };
    let (callers, _) = histories(5000, manner);
    assert!(callers > 0, "only a tie that probes have blurred stays open");
    let without = |_: &mut Random| Manner { keepalive: [0, 0], loss: 0, hasty: false, remembers: false };
    assert_eq!(histories(1000, without), (0, 0));
}
