//! The servers of the bench on a node: one that says its digit and closes, and one that takes its time for HTTP.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice_tests::system::now;
use socket2::{Domain, Socket, Type};

use super::{
    process,
    setup::{PLAIN, SLOW},
};

/// How long a request to [`SLOW`] takes.
pub const WORK: Duration = Duration::from_millis(50);

/// What a node is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// What it has seen.
    Look,
}

/// What a node has seen on [`PLAIN`].
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// Connections so far.
    pub accepted: u64,
    /// When the last one was accepted, as [`now`] tells it.
    pub last: Duration,
    /// The longest pause between two of them that has ended since the last look.
    pub pause: Duration,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicU64,
    last: AtomicU64,
    pause: AtomicU64,
}

/// The process: the argument is the digit.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let name = arguments.next().context("no digit given")?;
    let (plain, slow) = (listen(PLAIN)?, listen(SLOW)?);
    let counts = Arc::new(Counts::default());
    let (digit, counted) = (name.clone(), Arc::clone(&counts));
    thread::spawn(move || {
        for mut stream in plain.incoming().flatten() {
            let time = now().as_nanos() as u64;
            let before = counted.last.swap(time, Ordering::SeqCst);
            if before > 0 {
                counted.pause.fetch_max(time.saturating_sub(before), Ordering::SeqCst);
            }
            counted.accepted.fetch_add(1, Ordering::SeqCst);
            let _ = stream.write_all(digit.as_bytes());
        }
    });
    thread::spawn(move || {
        for stream in slow.incoming().flatten() {
            let name = name.clone();
            thread::spawn(move || work(stream, &name));
        }
    });
    process::serve(|_: Ask| {
        let last = Duration::from_nanos(counts.last.load(Ordering::SeqCst));
        let pause = Duration::from_nanos(counts.pause.swap(0, Ordering::SeqCst));
        Ok(Seen { accepted: counts.accepted.load(Ordering::SeqCst), last, pause })
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).context("making a socket")?;
    socket.set_reuse_address(true).context("setting up a socket")?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into()).context("binding")?;
    socket.listen(4096).context("listening")?;
    Ok(socket.into())
}

/// Answers requests without a body until the client has no more.
fn work(mut stream: TcpStream, name: &str) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    loop {
        while !lines.next()?.ok()?.is_empty() {}
        thread::sleep(WORK);
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{name}").ok()?;
    }
}
