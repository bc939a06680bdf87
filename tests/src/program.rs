//! Programs that run in a cgroup and a namespace: the agent, and real servers and clients.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{Cgroup, Namespace, client, system::eventually};

/// A running program with the processes that it starts. Dropping it ends them all.
#[derive(Debug)]
pub struct Program {
    child: Child,
    // Removed with the program.
    _directory: TempDir,
    log: PathBuf,
}

impl Program {
    /// Starts `words` (program and arguments) inside; what it prints goes to [`Program::log`].
    pub fn start<S: AsRef<OsStr>>(cgroup: Option<&Cgroup>, namespace: Option<&Namespace>, words: &[S]) -> Result<Self> {
        let directory = TempDir::new().context("making a directory for a program's log")?;
        let log = directory.path().join("log");
        let mut command = command(cgroup, namespace, words)?;
        let child = spawn_logged(&mut command, &log)?;
        Ok(Self { child, _directory: directory, log })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal to the program alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(pid(&self.child), signal).context("sending a signal")
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        eventually("the program ends", limit, || self.child.try_wait().ok().flatten())
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        end_group(&mut self.child);
    }
}

/// A command that will run inside the cgroup and the namespace, in a session of its own, and that is killed when the
/// thread that starts it ends.
pub fn command<S: AsRef<OsStr>>(
    cgroup: Option<&Cgroup>,
    namespace: Option<&Namespace>,
    words: &[S],
) -> Result<Command> {
    command_at(place(cgroup, namespace), words)
}

/// As [`command`], with the place as paths.
pub(crate) fn command_at<S: AsRef<OsStr>>(place: [OsString; 2], words: &[S]) -> Result<Command> {
    let mut command = Command::new(client::program()?);
    command.arg("run").args(place).args(words);
    Ok(command)
}

/// The two arguments that tell the client program where to go.
pub(crate) fn place(cgroup: Option<&Cgroup>, namespace: Option<&Namespace>) -> [OsString; 2] {
    let here = || OsString::from("-");
    let cgroup = cgroup.map_or_else(here, |cgroup| cgroup.path().into());
    [cgroup, namespace.map_or_else(here, |namespace| namespace.path().into())]
}

/// Starts a command whose output is added to the file `log`.
pub(crate) fn spawn_logged(command: &mut Command, log: &PathBuf) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.with_context(|| format!("opening {}", log.display()))?;
    let copy = file.try_clone().context("sharing a log file")?;
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
    command.spawn().with_context(|| format!("starting {command:?}"))
}

/// Ends a process and everything in its session's group: politely, then by force.
pub(crate) fn end_group(child: &mut Child) {
    let group = pid(child);
    let ended = |child: &mut Child| child.try_wait().ok().flatten();
    if ended(child).is_none() {
        let _ = killpg(group, Signal::SIGTERM);
        let _ = eventually("the program ends", Duration::from_secs(3), || ended(child));
    }
    // Also what the program left behind.
    let _ = killpg(group, Signal::SIGKILL);
    let _ = child.wait();
}

pub(crate) fn pid(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

/// Runs a program to its end inside and returns what it printed; an error if it fails.
pub fn output<S: AsRef<OsStr>>(cgroup: Option<&Cgroup>, namespace: Option<&Namespace>, words: &[S]) -> Result<String> {
    let output = command(cgroup, namespace, words)?.stdin(Stdio::null()).output().context("starting a program")?;
    if !output.status.success() {
        let words: Vec<_> = words.iter().map(|word| word.as_ref().to_string_lossy()).collect();
        bail!("{}: {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("the output is not text")
}
