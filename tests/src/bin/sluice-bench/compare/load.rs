//! The clients: connections that are opened and answered, and requests over connections that are kept.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sluice_tests::system::now;
use socket2::{Domain, Socket, Type};

use super::{process, setup::NODES};
use crate::report::Samples;

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(2);

/// What is shown of the times, and of how many connections at least: ten must be above a percentile.
const PERCENTILES: [(f64, u64); 3] = [(0.5, 1), (0.99, 1000), (0.999, 10_000)];

/// What clients are asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// Do this; the answer comes when it is done.
    Do(Work),
    /// Begin to do this.
    Begin(Work),
    /// Stop, and say what became of it.
    End,
}

/// What clients do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Work {
    Open(Open),
    Keep(Keep),
}

/// Opens connections one after the other on each thread, reads the node's digit and the end, and closes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Open {
    /// Those of one service in turn, many in a mixed order.
    pub to: Vec<SocketAddr>,
    pub threads: u64,
    /// Ends by then.
    pub time: Duration,
    /// Ends after this many on each thread.
    pub most: u64,
    /// After each connection.
    pub pause: Duration,
}

/// What became of [`Open`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Opened {
    /// Connections that were answered.
    pub answered: u64,
    /// Those that were not, by what the client saw.
    pub failed: BTreeMap<String, u64>,
    /// Answered connections a second.
    pub rate: f64,
    /// Answers by node.
    pub nodes: [u64; NODES],
    /// Microseconds from connect() to the end of the answer: median, 99th and 99.9th percentile. A percentile of too few
    /// connections is none.
    pub micros: [Option<f64>; 3],
}

/// Sends requests over connections that are kept, each thread one at a time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Keep {
    pub to: SocketAddr,
    pub connections: u64,
    pub time: Duration,
    /// Between an answer and the next request.
    pub think: Duration,
}

/// What became of [`Keep`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Kept {
    pub requests: u64,
    /// Requests without an answer. That a connection ends between two requests is none: clients look before they write.
    pub failed: u64,
    /// Connections that were opened after the first ones.
    pub again: u64,
    /// When each node has last answered, as [`now`] tells it.
    pub last: [Duration; NODES],
}

/// The process.
pub fn main() -> Result<()> {
    let mut begun: Option<(Arc<AtomicBool>, JoinHandle<Result<Value>>)> = None;
    process::serve(|ask: Ask| match ask {
        Ask::Do(work) => done(&work, &AtomicBool::new(false)),
        Ask::Begin(work) => {
            // Nobody has ended what was before.
            if let Some((stop, thread)) = begun.take() {
                stop.store(true, Ordering::SeqCst);
                let _ = thread.join();
            }
            let stop = Arc::new(AtomicBool::new(false));
            let seen = Arc::clone(&stop);
            begun = Some((stop, thread::spawn(move || done(&work, &seen))));
            Ok(Value::Null)
        }
        Ask::End => {
            let (stop, thread) = begun.take().context("nothing has begun")?;
            stop.store(true, Ordering::SeqCst);
            thread.join().ok().context("a thread panicked")?
        }
    })
}

fn done(work: &Work, stop: &AtomicBool) -> Result<Value> {
    let done = match work {
        Work::Open(open) => serde_json::to_value(opened(open, stop)),
        Work::Keep(keep) => serde_json::to_value(kept(keep, stop)),
    };
    done.context("writing down what was done")
}

fn opened(open: &Open, stop: &AtomicBool) -> Opened {
    let start = Instant::now();
    let work = |thread: u64| {
        let (mut opened, mut times) = (Opened::default(), Vec::new());
        for call in 0..open.most {
            if start.elapsed() >= open.time || stop.load(Ordering::Relaxed) {
                break;
            }
            let call = call * open.threads + thread;
            let at = if open.to.len() > NODES { mixed(call) } else { call } % open.to.len() as u64;
            let before = Instant::now();
            match one(open.to[at as usize]) {
                Ok(node) => {
                    times.push(before.elapsed().as_nanos() as f64 / 1e3);
                    opened.answered += 1;
                    opened.nodes[node] += 1;
                }
                Err(error) => *opened.failed.entry(words(&error)).or_default() += 1,
            }
            if !open.pause.is_zero() {
                thread::sleep(open.pause);
            }
        }
        (opened, times)
    };
    let (mut sum, mut all) = (Opened::default(), Vec::new());
    for (opened, times) in on_threads(open.threads, work) {
        sum.answered += opened.answered;
        opened.failed.into_iter().for_each(|(words, count)| *sum.failed.entry(words).or_default() += count);
        sum.nodes.iter_mut().zip(opened.nodes).for_each(|(sum, count)| *sum += count);
        all.extend(times);
    }
    sum.rate = sum.answered as f64 / start.elapsed().as_secs_f64();
    let times: Samples = all.into_iter().collect();
    sum.micros = PERCENTILES.map(|(share, least)| (sum.answered >= least).then(|| times.quantile(share)));
    sum
}

/// A number without order for each call (the first half of SplitMix64's finish). Turn by turn, services that each count round
/// robin for themselves would all send their connections to the same node at the same time.
fn mixed(call: u64) -> u64 {
    let high = call.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (high ^ (high >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

fn on_threads<T: Send>(threads: u64, work: impl Fn(u64) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    })
}

fn connected(to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    // The limit of a connect too.
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// One connection; returns the node that has answered.
fn one(to: SocketAddr) -> io::Result<usize> {
    let mut stream = connected(to)?;
    let mut answer = [0; 2];
    let mut length = 0;
    // The digit, then the end.
    while let count @ 1.. = stream.read(&mut answer[length..])? {
        length += count;
    }
    node_of(answer[0]).filter(|_| length == 1).ok_or(ErrorKind::UnexpectedEof.into())
}

fn node_of(digit: u8) -> Option<usize> {
    let node = usize::from(digit.checked_sub(b'1')?);
    (node < NODES).then_some(node)
}

fn words(error: &io::Error) -> String {
    let words = match error.kind() {
        ErrorKind::ConnectionRefused => "refused",
        ErrorKind::ConnectionReset => "reset",
        ErrorKind::UnexpectedEof => "closed without an answer",
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "no answer in 2 s",
        _ if error.raw_os_error() == Some(libc::EINPROGRESS) => "no answer in 2 s",
        _ => return error.to_string(),
    };
    words.to_owned()
}

fn kept(keep: &Keep, stop: &AtomicBool) -> Kept {
    let start = Instant::now();
    let work = |thread: u64| {
        let mut kept = Kept::default();
        // Not all at once.
        thread::sleep(keep.think.mul_f64(thread as f64 / keep.connections as f64));
        let mut stream = connected(keep.to).ok();
        while start.elapsed() < keep.time && !stop.load(Ordering::Relaxed) {
            if stream.as_ref().is_none_or(has_ended) {
                kept.again += 1;
                stream = connected(keep.to).ok();
            }
            kept.requests += 1;
            match stream.as_mut().and_then(request) {
                Some(node) => kept.last[node] = now(),
                None => {
                    kept.failed += 1;
                    stream = None;
                }
            }
            thread::sleep(keep.think);
        }
        kept
    };
    on_threads(keep.connections, work).into_iter().fold(Kept::default(), |mut sum, kept| {
        sum.requests += kept.requests;
        sum.failed += kept.failed;
        sum.again += kept.again;
        sum.last.iter_mut().zip(kept.last).for_each(|(sum, last)| *sum = last.max(*sum));
        sum
    })
}

/// Whether the other end has closed.
fn has_ended(stream: &TcpStream) -> bool {
    let ended = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let waits = ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock);
    stream.set_nonblocking(false).is_err() || !waits
}

/// One request; the last byte of the answer is the node's digit.
fn request(stream: &mut TcpStream) -> Option<usize> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n").ok()?;
    let (mut answer, mut part) = (Vec::new(), [0; 512]);
    loop {
        match stream.read(&mut part).ok()? {
            0 => return None,
            count => answer.extend_from_slice(&part[..count]),
        }
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if let Some(digit) = head.and_then(|head| answer.get(head + 4)) {
            return node_of(*digit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_robins_do_not_run_in_phase() {
        let (services, mut turns) = (100, vec![0; 100]);
        for call in 0..services * 30 {
            turns[(mixed(call) % services) as usize] += 1;
        }
        // Each node is next for about a third of them.
        for node in 0..3 {
            let next = turns.iter().filter(|turn| *turn % 3 == node).count();
            assert!((15..=55).contains(&next), "{next} {turns:?}");
        }
    }
}
