//! The real agent, with a socket, a state directory, a bpf directory and a cgroup of its own.

use std::{
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    Cgroup, Namespace,
    http::{Endpoint, Request, Response},
    program::{command_at, pid, place, spawn_logged},
    system::{bpffs, companion, eventually, unique},
};

/// What tests log.
const LOUD: &str = "info,sluice=debug";
/// How long a start may take.
const READY: Duration = Duration::from_secs(20);

/// An agent, running or not. Dropping it ends the process and removes what it left in the kernel and on disk.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    cgroup: PathBuf,
    /// Where it runs and probes from; the test's own when not said.
    namespace: Option<Arc<Namespace>>,
    /// Whether it lives in the cgroup that it steers.
    steered: bool,
    /// A program, with arguments, that starts it in its own way.
    starter: &'static [&'static str],
    home: Arc<TempDir>,
    bpffs: PathBuf,
    listen: Option<String>,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    log_level: &'static str,
    log_format: &'static str,
    child: Option<Child>,
    /// Whether what it leaves is removed when it is dropped.
    owns: bool,
}

impl Agent {
    /// An agent that will steer this cgroup. It is not started yet.
    pub fn new(cgroup: &Path) -> Result<Self> {
        Ok(Self {
            program: program()?,
            cgroup: cgroup.to_owned(),
            namespace: None,
            steered: false,
            starter: &[],
            home: Arc::new(TempDir::with_prefix("sluice-test-").context("making a directory for an agent")?),
            bpffs: bpffs()?.join(unique("agent")),
            listen: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            log_level: LOUD,
            log_format: "text",
            child: None,
            owns: true,
        })
    }

    /// Another agent with the same socket, directories and cgroup, without the other's further words. It is not started.
    pub fn sibling(&self) -> Self {
        Self {
            program: self.program.clone(),
            cgroup: self.cgroup.clone(),
            namespace: self.namespace.clone(),
            steered: self.steered,
            starter: self.starter,
            home: Arc::clone(&self.home),
            bpffs: self.bpffs.clone(),
            listen: None,
            arguments: Vec::new(),
            environment: Vec::new(),
            log_level: LOUD,
            log_format: self.log_format,
            child: None,
            owns: false,
        }
    }

    /// Steers another cgroup.
    pub fn steering(mut self, cgroup: &Path) -> Self {
        self.cgroup = cgroup.to_owned();
        self
    }

    /// How it logs: "text" when not said, or "json".
    pub fn log_format(mut self, format: &'static str) -> Self {
        self.log_format = format;
        self
    }

    /// Applies (and watches) a file or directory of documents.
    pub fn apply(self, file: &Path) -> Self {
        let file = file.to_string_lossy().into_owned();
        self.argument("--apply").argument(&file)
    }

    /// Runs it in a network namespace, where its probes find what lives there.
    pub fn inside(mut self, namespace: &Namespace) -> Result<Self> {
        self.namespace = Some(Arc::new(namespace.again()?));
        Ok(self)
    }

    /// Runs it in the cgroup that it steers: what it connects to is steered, unless it has the mark.
    pub fn steered(mut self) -> Self {
        self.steered = true;
        self
    }

    /// Another directory for its pins, in a bpf file system of the test's own.
    pub fn pinned_in(mut self, bpffs: &Path) -> Self {
        self.bpffs = bpffs.to_owned();
        self
    }

    /// Runs it in a pid namespace of its own, as a container without `hostPID` does.
    pub fn alone(mut self) -> Self {
        self.starter = &["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];
        self
    }

    /// Runs it without the right to send packets of its own making.
    pub fn without_raw_sockets(mut self) -> Self {
        self.starter = &["setpriv", "--inh-caps", "-net_raw", "--bounding-set", "-net_raw"];
        self
    }

    /// One more word on its command line.
    pub fn argument(mut self, word: &str) -> Self {
        self.arguments.push(word.to_owned());
        self
    }

    /// One more variable in its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What it logs, as --log-level has it.
    pub fn log_level(mut self, level: &'static str) -> Self {
        self.log_level = level;
        self
    }

    /// Logs what operators see, and keeps the log to itself: for programs that are no tests.
    pub fn quiet(mut self) -> Self {
        self.log_level = "info";
        self
    }

    /// The TCP address of its API; none when not said.
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// Another agent program than the one under test, for example an older one.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self
    }

    /// Starts it, also once more after a stop, and waits until it says that it is ready.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.ready()
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the agent runs already");
        let [here, namespace] = place(None, self.namespace.as_deref());
        let cgroup = if self.steered { self.cgroup.clone().into() } else { here };
        let starter = self.starter.iter().map(Path::new);
        let words: Vec<_> = starter.chain([self.program.as_path()]).collect();
        let mut command = command_at([cgroup, namespace], &words)?;
        command.arg("agent").args(self.settings());
        command.args(["--log-format", self.log_format, "--log-level", self.log_level]).args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.child = Some(spawn_logged(&mut command, &self.log_file())?);
        Ok(())
    }

    /// Waits until /readyz answers 200.
    pub fn ready(&mut self) -> Result<()> {
        let mut ended = None;
        let ready = eventually("the agent is ready", READY, || {
            ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            let answer = self.get("/readyz").is_ok_and(|response| response.status == 200);
            (answer || ended.is_some()).then_some(())
        });
        ready.with_context(|| format!("its log:\n{}", self.log()))?;
        match ended {
            Some(status) => Err(anyhow::anyhow!("the agent ended with {status}; its log:\n{}", self.log())),
            None => Ok(()),
        }
    }

    /// kill -9.
    pub fn kill(&mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(10)).map(drop)
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(Duration::from_secs(20))
    }

    /// Sends any signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let child = self.child.as_ref().context("the agent does not run")?;
        kill(pid(child), signal).with_context(|| format!("sending {signal}"))?;
        if signal != Signal::SIGSTOP {
            return Ok(());
        }
        // Each thread stops for itself.
        let threads = format!("/proc/{}/task", child.id());
        let is_stopped = |thread: io::Result<DirEntry>| -> Option<bool> {
            let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
            Some(stat.rsplit_once(')')?.1.trim_start().starts_with('T'))
        };
        eventually("the agent is stopped", Duration::from_secs(10), || {
            fs::read_dir(&threads).ok()?.all(|thread| is_stopped(thread) == Some(true)).then_some(())
        })
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the agent does not run")?;
        let ended = eventually("the agent ends", limit, || child.try_wait().ok().flatten());
        if ended.is_err() {
            self.child = Some(child);
        }
        ended
    }

    /// Its process id while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The Unix socket of its API.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("sluice.sock")
    }

    /// Its state directory.
    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// Its directory in the bpf file system.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// What it has logged so far, restarts included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The whole API over the Unix socket.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Unix(self.socket())
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Response> {
        self.request("GET", path, &Request::new())
    }

    /// PUT with a JSON body.
    pub fn put(&self, path: &str, body: &Value) -> Result<Response> {
        self.request("PUT", path, &Request::json(body))
    }

    /// PATCH with a JSON merge patch.
    pub fn patch(&self, path: &str, patch: &Value) -> Result<Response> {
        let body = patch.to_string();
        self.request("PATCH", path, &Request::new().body("application/merge-patch+json", body))
    }

    /// POST with a JSON body.
    pub fn post(&self, path: &str, body: &Value) -> Result<Response> {
        self.request("POST", path, &Request::json(body))
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Response> {
        self.request("DELETE", path, &Request::new())
    }

    /// Any request.
    pub fn request(&self, method: &str, path: &str, request: &Request) -> Result<Response> {
        self.endpoint().request(method, path, request)
    }

    /// The value of one series of /metrics: the name and all of the labels given must match; several are added up.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<Option<f64>> {
        let page = self.get("/metrics")?.expect_status(200).text();
        Ok(sum_of(&page, name, labels))
    }

    /// Runs a client verb of the command line against this agent, for example `cli(&["get", "services"])`.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(words).env("SLUICE_SOCKET", self.socket());
        command.output().with_context(|| format!("running sluice {}", words.join(" ")))
    }

    /// Runs `sluice uninstall` for this agent. Dropping does it too.
    pub fn uninstall(&self) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.arg("uninstall").arg("--bpffs").arg(&self.bpffs).arg("--state-dir").arg(self.state_dir());
        command.arg("--socket").arg(self.socket());
        command.output().context("running sluice uninstall")
    }

    fn settings(&self) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let listen = self.listen.clone().unwrap_or_else(|| "off".to_owned());
        let settings = [
            ("--socket", text(&self.socket())),
            ("--listen", listen),
            ("--state-dir", text(&self.state_dir())),
            ("--bpffs", text(&self.bpffs)),
            ("--cgroup", text(&self.cgroup)),
        ];
        settings.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    fn log_file(&self) -> PathBuf {
        self.home.path().join("log")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let ran = self.child.is_some() || self.log_file().exists();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if !ran || !self.owns {
            return;
        }
        // The test's output is shown only if it fails.
        if self.log_level == LOUD {
            eprintln!("--- log of the agent\n{}---", self.log());
        }
        match self.uninstall() {
            Ok(output) if output.status.success() => {}
            Ok(output) => eprintln!("uninstall: {}: {}", output.status, String::from_utf8_lossy(&output.stderr)),
            Err(error) => eprintln!("{error:#}"),
        }
        // Pins that an agent which cannot uninstall left behind would keep its programs in the kernel.
        if self.bpffs.exists() {
            let _ = fs::remove_dir_all(&self.bpffs);
        }
    }
}

/// The program under test: SLUICE_BIN, or the one that was built beside the tests.
pub fn program() -> Result<PathBuf> {
    companion("sluice", "SLUICE_BIN")
}

/// An agent for a cgroup guard, not yet started.
impl TryFrom<&Cgroup> for Agent {
    type Error = anyhow::Error;

    fn try_from(cgroup: &Cgroup) -> Result<Self> {
        Self::new(cgroup.path())
    }
}

/// A TCP port of 127.0.0.1 in the given namespace that nobody listens on at this moment.
pub fn free_port(namespace: &Namespace) -> Result<u16> {
    let listener = namespace.run(|| std::net::TcpListener::bind(("127.0.0.1", 0)));
    Ok(listener.context("looking for a free port")?.local_addr().context("reading a port")?.port())
}

fn sum_of(page: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let series = page.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (set, value) = rest.rsplit_once(' ')?;
        let whole_name = set.is_empty() || set.starts_with('{');
        let all = labels.iter().all(|(key, value)| {
            let pair = format!("{key}=\"{value}\"");
            set.contains(&format!("{{{pair}")) || set.contains(&format!(",{pair}"))
        });
        (whole_name && all).then(|| value.parse().ok())?
    });
    series.fold(None, |sum: Option<f64>, value: f64| Some(sum.unwrap_or(0.0) + value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds_up_the_series_that_match() {
        let page = "# HELP a_total x\na_total{backend=\"n1\",service=\"s\"} 3\na_total{backend=\"n2\",service=\"s\"} 4\n\
                    a_total_more{backend=\"n1\"} 9\nplain 1\n";
        assert_eq!(sum_of(page, "a_total", &[("service", "s")]), Some(7.0));
        assert_eq!(sum_of(page, "a_total", &[("backend", "n1"), ("service", "s")]), Some(3.0));
        assert_eq!(sum_of(page, "a_total", &[("backend", "n3")]), None);
        assert_eq!(sum_of(page, "plain", &[]), Some(1.0));
    }
}
