//! The clients: a process inside the steered cgroup that asks for a page some hundred times a second, each time over a new
//! connection or over a few that it keeps, and says ten times a second who has answered.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use sluice_tests::{
    Cgroup, Namespace, program,
    system::{eventually, now, patience},
};

const THREADS: u32 = 4;
const TELL: Duration = Duration::from_millis(100);
/// A request that takes longer has failed.
const LIMIT: Duration = Duration::from_secs(3);
/// How far back the shares that clients see look.
const WINDOW: usize = 40;

/// What the clients have seen since they began.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// When they said so, in microseconds of the machine's monotonic clock.
    pub at: u64,
    /// By the name of the server that answered.
    pub answers: BTreeMap<String, Answers>,
    /// Requests without an answer, by reason.
    pub failures: BTreeMap<String, u64>,
}

/// What one server has answered.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Answers {
    /// How many.
    pub count: u64,
    /// When the last of them had begun, in microseconds of the machine's monotonic clock.
    pub last_start: u64,
}

impl Seen {
    /// Answers of all servers.
    pub fn answered(&self) -> u64 {
        self.answers.values().map(|answers| answers.count).sum()
    }

    /// Answers of one server.
    pub fn of(&self, server: &str) -> Answers {
        self.answers.get(server).copied().unwrap_or_default()
    }

    /// Requests without an answer.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// How the clients connect.
#[derive(Clone, Copy, Debug)]
pub enum Habit {
    /// Anew for each of so many requests a second.
    Anew(u32),
    /// Each of so many clients keeps its connection, and connects again when that has died.
    Kept(u32),
}

/// Time between two requests of a client that keeps its connection.
const THINK: Duration = Duration::from_millis(500);

/// The running clients. Dropping this ends them.
#[derive(Debug)]
pub struct Load {
    child: Child,
    history: Arc<Mutex<Vec<(Instant, Seen)>>>,
}

impl Load {
    /// Begins.
    pub fn start(cgroup: &Cgroup, namespace: &Namespace, to: SocketAddr, habit: Habit) -> Result<Self> {
        let demo = std::env::current_exe().context("finding the running program")?;
        let (habit, number) = match habit {
            Habit::Anew(rate) => ("anew", rate),
            Habit::Kept(clients) => ("kept", clients),
        };
        let words =
            [demo.into_os_string(), "load".into(), to.to_string().into(), habit.into(), number.to_string().into()];
        let mut command = program::command(Some(cgroup), Some(namespace), &words)?;
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting the clients")?;
        let output = child.stdout.take().context("the clients have no output")?;
        let history = Arc::new(Mutex::new(vec![(Instant::now(), Seen::default())]));
        let shared = Arc::clone(&history);
        let read = move || {
            for line in BufReader::new(output).lines().map_while(io::Result::ok) {
                let Ok(seen) = serde_json::from_str(&line) else { continue };
                let mut history = shared.lock().unwrap_or_else(PoisonError::into_inner);
                history.push((Instant::now(), seen));
                let extra = history.len().saturating_sub(WINDOW);
                history.drain(..extra);
            }
        };
        thread::Builder::new().name("clients".into()).spawn(read).context("starting a thread")?;
        Ok(Self { child, history })
    }

    /// Everything until now; at most a tenth of a second old.
    pub fn seen(&self) -> Seen {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        history.last().map(|(_, seen)| seen.clone()).unwrap_or_default()
    }

    /// Everything until a moment after this call.
    pub fn seen_now(&self) -> Result<Seen> {
        let moment = micros();
        eventually("word from the clients", Duration::from_secs(5), || {
            Some(self.seen()).filter(|seen| seen.at > moment)
        })
    }

    /// Answers a second, lately.
    pub fn rate(&self) -> f64 {
        let history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((start, first)), Some((end, last))) = (history.first(), history.last()) else { return 0.0 };
        let time = end.duration_since(*start).as_secs_f64();
        if time > 0.0 { (last.answered() - first.answered()) as f64 / time } else { 0.0 }
    }

    /// Whether the clients are still there.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Asks no more, and returns everything that was seen once the last request has its answer.
    pub fn finish(mut self) -> Result<Seen> {
        use nix::{
            sys::signal::{Signal, kill},
            unistd::Pid,
        };
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).context("stopping the clients")?;
        self.child.wait().context("waiting for the clients")?;
        // What they said last.
        thread::sleep(TELL);
        Ok(self.seen())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process: its arguments are the address, the habit and its number.
pub fn main(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mut next = || arguments.next().context("an argument is missing");
    let to: SocketAddr = next()?.parse().context("reading the address")?;
    let is_kept = next()? == "kept";
    let number: u32 = next()?.parse().context("reading the number")?;
    sluice_tests::interrupt::note()?;
    let seen = Mutex::new(Seen::default());
    thread::scope(|scope| {
        let (threads, interval) =
            if is_kept { (number, THINK) } else { (THREADS, Duration::from_secs(1) * THREADS / number.max(1)) };
        for thread in 0..threads {
            let seen = &seen;
            scope.spawn(move || {
                // Not all at once.
                thread::sleep(interval * thread / threads.max(1));
                ask_steadily(to, interval, is_kept, seen);
            });
        }
        while !sluice_tests::interrupt::noted() {
            thread::sleep(TELL);
            tell(&seen)?;
        }
        anyhow::Ok(())
    })?;
    tell(&seen)
}

fn tell(seen: &Mutex<Seen>) -> Result<()> {
    let seen = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.at = micros();
        seen.clone()
    };
    let line = serde_json::to_string(&seen).context("writing down what was seen")?;
    let mut output = io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("telling what was seen")
}

/// One request in each interval; those for which there was no time are left out, not made up for.
fn ask_steadily(to: SocketAddr, interval: Duration, is_kept: bool, seen: &Mutex<Seen>) {
    let mut due = Instant::now();
    let mut kept = None;
    while !sluice_tests::interrupt::noted() {
        let start = micros();
        let answer = if is_kept { ask_over(&mut kept, to) } else { ask(to) };
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(server) => {
                let answers = seen.answers.entry(server).or_default();
                answers.count += 1;
                answers.last_start = answers.last_start.max(start);
            }
            Err(error) => *seen.failures.entry(format!("{error:#}")).or_default() += 1,
        }
        drop(seen);
        due = (due + interval).max(Instant::now());
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// Now, in microseconds of the machine's monotonic clock.
pub fn micros() -> u64 {
    u64::try_from(now().as_micros()).unwrap_or(u64::MAX)
}

/// The same over the connection that is kept, or a new one when that has died: a pool looks before it uses one.
fn ask_over(kept: &mut Option<TcpStream>, to: SocketAddr) -> Result<String> {
    let mut stream = match kept.take().filter(is_alive) {
        Some(stream) => stream,
        None => TcpStream::connect_timeout(&to, patience(LIMIT)).context("connecting")?,
    };
    stream.set_read_timeout(Some(patience(LIMIT))).context("setting a time limit")?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\n\r\n").context("sending")?;
    let (mut answer, mut piece) = (String::new(), [0; 1024]);
    let body = loop {
        let length = stream.read(&mut piece).context("receiving")?;
        anyhow::ensure!(length > 0, "the answer is cut off");
        answer += &String::from_utf8_lossy(piece.get(..length).unwrap_or_default());
        // The body is one line.
        if let Some((_, body)) = answer.split_once("\r\n\r\n").filter(|(_, body)| body.ends_with('\n')) {
            break body.trim().to_owned();
        }
    };
    anyhow::ensure!(answer.starts_with("HTTP/1.1 200 "), "another status than 200");
    *kept = Some(stream);
    Ok(body)
}

/// Whether nothing waits on an idle connection: neither an error nor its end.
fn is_alive(stream: &TcpStream) -> bool {
    let quiet = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let quiet = quiet.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    quiet && stream.set_nonblocking(false).is_ok()
}

/// The name of the server that answers.
fn ask(to: SocketAddr) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience(LIMIT)).context("connecting")?;
    stream.set_read_timeout(Some(patience(LIMIT))).context("setting a time limit")?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n").context("sending")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("receiving")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut off")?;
    anyhow::ensure!(head.starts_with("HTTP/1.1 200 "), "another status than 200");
    Ok(body.trim().to_owned())
}
