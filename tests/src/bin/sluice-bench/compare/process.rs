//! Processes of the bench in other namespaces: each answers one line of JSON for each line that it reads.

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Serialize, de::DeserializeOwned};
use sluice_tests::{Cgroup, Namespace, program};

/// A process that answers. Dropping it ends it.
#[derive(Debug)]
pub struct Helper {
    child: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Helper {
    /// Starts this program anew with these words. It ends with the thread that starts it.
    pub fn start(cgroup: Option<&Cgroup>, namespace: &Namespace, words: &[&str]) -> Result<Self> {
        let bench = env::current_exe().context("finding the running program")?;
        let bench = bench.to_str().context("the path of the running program")?;
        let mut command = program::command(cgroup, Some(namespace), &[&[bench], words].concat())?;
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = child.context("starting a process of the bench")?;
        let questions = child.stdin.take().context("a process without input")?;
        let answers = BufReader::new(child.stdout.take().context("a process without output")?);
        Ok(Self { child, questions, answers })
    }

    /// Asks, and waits for the answer.
    pub fn ask<A: DeserializeOwned>(&mut self, question: &impl Serialize) -> Result<A> {
        let line = serde_json::to_string(question).context("writing down a question")?;
        writeln!(self.questions, "{line}").context("asking a process")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer).context("reading an answer")?;
        let answer: Result<A, String> = serde_json::from_str(&answer).context("a process of the bench has ended")?;
        answer.map_err(anyhow::Error::msg).with_context(|| format!("doing {line:.80}"))
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other side: answers until the input ends.
pub fn serve<Q: DeserializeOwned, A: Serialize>(mut answer: impl FnMut(Q) -> Result<A>) -> Result<()> {
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let question = serde_json::from_str(&line.context("reading a question")?).context("reading a question")?;
        let answer = answer(question).map_err(|error| format!("{error:#}"));
        writeln!(output, "{}", serde_json::to_string(&answer)?).context("answering")?;
    }
    Ok(())
}

/// Asks every millisecond until there is an answer.
///
/// # Errors
/// There is none within `limit`.
pub fn promptly<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        if start.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        thread::sleep(Duration::from_millis(1));
    }
}
