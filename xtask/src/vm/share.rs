//! The programs of this machine, for guests that run tests with real clients and servers: virtiofsd serves /usr, and the
//! guest mounts it read-only.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::toolchain::in_path;

/// How the guest calls it.
pub const TAG: &str = "usr";
/// How long the daemon may take to listen.
const READY: Duration = Duration::from_secs(5);

/// A running virtiofsd, ended when dropped.
#[derive(Debug)]
pub struct Share {
    daemon: Child,
    socket: PathBuf,
}

impl Share {
    /// Serves one guest; the log is beside the guest's own.
    pub fn start(work: &Path) -> Result<Self> {
        let program = virtiofsd().context("virtiofsd is not installed; run `cargo xtask setup --tests`")?;
        // The name of a socket must be short, and the workspace may be deep.
        let socket = env::temp_dir().join(format!("sluice-usr-{}", process::id()));
        let log = work.join("virtiofsd.log");
        if socket.exists() {
            fs::remove_file(&socket).with_context(|| format!("removing {}", socket.display()))?;
        }
        let output = fs::File::create(&log).with_context(|| format!("making {}", log.display()))?;
        let mut command = Command::new(program);
        // Old and new virtiofsd understand these. Nobody changes /usr meanwhile, so the guest may keep what it has read.
        let path = format!("--socket-path={}", socket.display());
        command.args(["-f", &path, "-o", "source=/usr", "-o", "cache=always"]);
        // A container may refuse more than this; a user who is not root, even this.
        command.args(["-o", if nix::unistd::geteuid().is_root() { "sandbox=chroot" } else { "sandbox=none" }]);
        let copy = output.try_clone().context("sharing a log file")?;
        command.stdin(Stdio::null()).stdout(output).stderr(copy);
        let daemon = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let mut share = Self { daemon, socket };
        let start = Instant::now();
        while !share.socket.exists() {
            let ended = share.daemon.try_wait().context("looking after virtiofsd")?;
            let said = || fs::read_to_string(&log).unwrap_or_default();
            ensure!(ended.is_none() && start.elapsed() < READY, "virtiofsd does not listen: {}", said().trim());
            thread::sleep(Duration::from_millis(10));
        }
        Ok(share)
    }

    /// What qemu has to be told. The daemon shares all of the guest's memory, which needs a file of its own.
    pub fn arguments(&self, memory: &str) -> Vec<String> {
        let socket = self.socket.display();
        let words = [
            ("-object", format!("memory-backend-memfd,id=memory,size={memory}M,share=on")),
            ("-machine", "memory-backend=memory".to_owned()),
            ("-chardev", format!("socket,id=usr,path={socket}")),
            ("-device", format!("vhost-user-fs-pci,chardev=usr,tag={TAG}")),
        ];
        words.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = fs::remove_file(&self.socket);
    }
}

/// The daemon, which distributions keep outside PATH.
pub fn virtiofsd() -> Option<PathBuf> {
    let known = ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].map(PathBuf::from);
    in_path("virtiofsd").or_else(|| known.into_iter().find(|file| file.exists()))
}
