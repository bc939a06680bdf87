//! A command of the hook directory that exits with 0.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncReadExt, Interest, unix::AsyncFd},
    net::unix::pipe,
    time::timeout,
};

use super::{Found, Means, Subject};
use crate::{
    control::readiness::{Cause, ProbeFailure},
    host::{namespaces::pidfd_open, ownership, wait},
};

/// The end of the output: bytes that are kept, and characters that are shown.
const KEPT: usize = 4096;
const SHOWN: usize = 200;
/// Most that is read of the output after the command has ended, in pieces of [`KEPT`].
const RESIDUE: usize = 32;
/// Time for a killed command to disappear.
const DEATH: Duration = Duration::from_secs(1);
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub async fn probe(subject: &Subject, means: &Means) -> Found {
    let hook = hook(means.hooks.as_deref(), subject.readiness.command.first().map_or("", String::as_str))?;
    let mut running = RunningCommand::start(subject, &hook)?;
    let Ok(ended) = timeout(subject.readiness.timeout.duration(), running.end()).await else {
        running.kill().await;
        let message = format!("the command did not end within {}, and was killed", subject.readiness.timeout);
        return Err(ProbeFailure::new(Cause::NoAnswer, message));
    };
    let status = ended.map_err(|error| ProbeFailure::setup("waiting for the command", &error))?;
    if status.success() {
        return Ok(());
    }
    let (cause, what) = match (status.code(), status.signal()) {
        (Some(code), _) => (Cause::Exit(code), format!("exit status {code}")),
        (None, signal) => (Cause::Signal(signal.unwrap_or(0)), format!("killed by signal {}", signal.unwrap_or(0))),
    };
    Err(ProbeFailure::new(
        cause,
        match last_line(&running.output) {
            Some(line) => format!("{what}: {line}"),
            None => what,
        },
    ))
}

/// The file of a hook: it must lie in the directory itself, symbolic links resolved.
fn hook(hooks: Option<&Path>, name: &str) -> Result<PathBuf, ProbeFailure> {
    let Some(hooks) = hooks else {
        return Err(ProbeFailure::new(Cause::Setup, "the agent has no directory of hooks (--hooks)"));
    };
    let missing = |error: io::Error| ProbeFailure::setup(&format!("hook {name:?} in {}", hooks.display()), &error);
    let directory = hooks.canonicalize().map_err(missing)?;
    let file = directory.join(name).canonicalize().map_err(missing)?;
    let is_file = fs::metadata(&file).map_err(missing)?.is_file();
    if file.parent() != Some(&directory) || !is_file {
        return Err(ProbeFailure::new(Cause::Setup, format!("hook {name:?} is no file of {} itself", hooks.display())));
    }
    ownership::check(&file).map_err(|error| ProbeFailure::new(Cause::Setup, format!("hook {name:?}: {error:#}")))?;
    Ok(file)
}

/// A command at work, leader of a process group of its own.
struct RunningCommand {
    child: Child,
    /// Readable once the leader has ended. The leader is reaped only after its group was killed, so that no other
    /// process gets its id before.
    ended: AsyncFd<OwnedFd>,
    pipe: Option<pipe::Receiver>,
    /// The last bytes of the output.
    output: Vec<u8>,
}

impl RunningCommand {
    fn start(subject: &Subject, hook: &Path) -> Result<Self, ProbeFailure> {
        let failed = |error: io::Error| ProbeFailure::setup(&format!("starting {}", hook.display()), &error);
        let (reader, writer) = io::pipe().map_err(failed)?;
        let mut command = Command::new(hook);
        command
            .args(subject.readiness.command.iter().skip(1))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| PATH.into()))
            .env("SLUICE_SERVICE", subject.service.as_str())
            .env("SLUICE_BACKEND", subject.backend.as_str())
            .env("SLUICE_ADDRESS", subject.address.to_string())
            .env("SLUICE_IP", subject.address.ip().to_string())
            .env("SLUICE_PORT", subject.address.port().to_string())
            .env("SLUICE_NODE", subject.node.as_ref().map_or("", |node| node.as_str()))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let watch = || -> io::Result<_> {
            let ended = wait::register(pidfd_open(child.id())?, Interest::READABLE)?;
            Ok((ended, pipe::Receiver::from_owned_fd(reader.into())?))
        };
        match watch() {
            Ok((ended, pipe)) => Ok(Self { child, ended, pipe: Some(pipe), output: Vec::new() }),
            Err(error) => {
                end(&mut child);
                Err(failed(error))
            }
        }
    }

    /// Waits until the leader has ended; what it left running is killed.
    async fn end(&mut self) -> io::Result<ExitStatus> {
        let mut some = [0; KEPT];
        loop {
            let Some(pipe) = &mut self.pipe else {
                let _ = self.ended.readable().await?;
                break;
            };
            tokio::select! {
                biased;
                ended = self.ended.readable() => {
                    let _ = ended?;
                    break;
                }
                read = pipe.read(&mut some) => match read {
                    Ok(length) if length > 0 => keep(&mut self.output, &some[..length]),
                    // The command has closed its output and goes on.
                    Ok(_) | Err(_) => self.pipe = None,
                },
            }
        }
        for _ in 0..RESIDUE {
            match self.pipe.as_ref().map(|pipe| pipe.try_read(&mut some)) {
                Some(Ok(length)) if length > 0 => keep(&mut self.output, &some[..length]),
                Some(Ok(_) | Err(_)) | None => break,
            }
        }
        kill_group(&self.child);
        self.child.wait()
    }

    /// Ends the whole group.
    async fn kill(&mut self) {
        kill_group(&self.child);
        // The leader is gone at once, unless it hangs in the kernel.
        let _ = timeout(DEATH, self.ended.readable()).await;
    }
}

impl Drop for RunningCommand {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            end(&mut self.child);
        }
    }
}

/// Kills a group whose leader is not reaped yet, and reaps the leader.
fn end(child: &mut Child) {
    kill_group(child);
    if matches!(child.try_wait(), Ok(None)) {
        // One that hangs in the kernel must not hold up the others.
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        thread::spawn(move || nix::sys::wait::waitpid(pid, None));
    }
}

fn kill_group(child: &Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // An error means that nobody is left in the group.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

fn keep(output: &mut Vec<u8>, more: &[u8]) {
    output.extend_from_slice(more);
    output.drain(..output.len().saturating_sub(KEPT));
}

/// The last line with text in it, without control characters.
fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().filter(|c| !c.is_control()).take(SHOWN).collect())
}
