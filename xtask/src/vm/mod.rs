//! Runs programs of the workspace under another kernel: qemu boots a Debian kernel with an initramfs that holds them.
//! The guest has two serial ports: the kernel's messages go to the first, what the programs say to the second.

mod black_box;
mod image;
mod kernel;
mod share;

use std::{
    fs,
    io::{BufRead, BufReader, Write, stdout},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

pub use black_box::{Selection, test};
pub use kernel::obtain;
use share::Share;
pub use share::virtiofsd;

/// The kernels that the tests run under when none is named.
pub const KERNELS: [&str; 2] = ["6.1", "6.12"];

/// A machine that says nothing for this long hangs. A single test may be slow under emulation.
const SILENCE: Duration = Duration::from_secs(900);
/// The longest that a machine may take for what is no test.
pub const LIMIT: Duration = Duration::from_secs(2300);
/// How much of the kernel's messages is shown when something went wrong.
const TAIL: usize = 60;
/// What the guest's init puts before what it says itself.
const MARK: &str = "sluice-vm: ";

/// What follows [`MARK`] before data for the host.
const DATA: &str = "data ";

/// Of a machine, in MiB.
const MEMORY: &str = "2048";

/// What a machine does.
#[derive(Debug)]
pub struct Job<'a> {
    /// Programs, and their names in the guest.
    pub programs: Vec<(&'a Path, &'static str)>,
    /// A command of the guest's shell. The machine ends with it.
    pub command: String,
    /// Whether it speaks with a person: then this terminal is its terminal.
    pub interactive: bool,
    /// Whether it finds the programs of this machine in /usr.
    pub shared: bool,
    /// The longest that it may take, unless it speaks with a person.
    pub limit: Duration,
}

/// How a machine has ended.
#[derive(Debug)]
struct End {
    /// Of the job, if it came to it.
    exit: Option<i32>,
    /// The kernel's messages.
    console: PathBuf,
}

/// Boots the kernel, does the job, and returns what it has said last after "sluice-vm: data ", which is not shown. What a job
/// that fails or takes too long has left is taken too.
pub fn data(series: &str, job: &Job, accelerator: &str) -> Result<String> {
    let mut data = None;
    let end = run_job(series, job, accelerator, |line| {
        data = line.strip_prefix(MARK).and_then(|said| said.strip_prefix(DATA)).map(str::to_owned).or(data.take());
    });
    let failed = match end {
        Ok(End { exit: Some(0), .. }) => return data.context("the machine has left no data"),
        Ok(End { exit, console }) => {
            show_tail(&console);
            anyhow::anyhow!("the machine did not do its job: {exit:?}")
        }
        Err(error) => error,
    };
    let data = data.ok_or(failed)?;
    println!("the machine did not end well: what it has measured before is taken");
    Ok(data)
}

/// Boots the kernel and does the job; true if it ended well.
pub fn run(series: &str, job: &Job, accelerator: &str) -> Result<bool> {
    let End { exit, console } = run_job(series, job, accelerator, |_| {})?;
    if exit.is_none() {
        show_tail(&console);
        bail!("the machine stopped before it was through");
    }
    Ok(exit == Some(0))
}

fn run_job(series: &str, job: &Job, accelerator: &str, line: impl FnMut(&str)) -> Result<End> {
    let kernel = kernel::obtain(series)?;
    println!("Linux {}", kernel.release);
    let initramfs = image::build(&kernel, job, accelerator == "tcg")?;
    let console = initramfs.with_file_name("console.log");
    let share = if job.shared { Some(Share::start(&kernel.work)?) } else { None };
    let mut machine = boot(&kernel.image, &initramfs, &console, accelerator, job.interactive, share.as_ref())?;
    let exit = if job.interactive {
        let status = machine.0.wait().context("waiting for qemu")?;
        Ok(status.success().then_some(0))
    } else {
        follow(&mut machine.0, series, job.limit, line)
    };
    drop(machine);
    match exit {
        Ok(exit) => Ok(End { exit, console }),
        Err(error) => {
            show_tail(&console);
            Err(error)
        }
    }
}

/// One word of a shell's command.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A running qemu, ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn boot(
    kernel: &Path,
    initramfs: &Path,
    console: &Path,
    accelerator: &str,
    interactive: bool,
    share: Option<&Share>,
) -> Result<Machine> {
    // An emulator runs `rep movsb`, which kernels take for fast where the processor says so, byte by byte: without that
    // word the start of an agent takes three quarters of its time.
    let (accelerator, processor) = match accelerator {
        "tcg" => ("tcg,thread=multi", "max,-erms,-fsrm"),
        other => (other, "max"),
    };
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", accelerator, "-cpu", processor, "-smp", "2", "-m", MEMORY]);
    command.args(share.map(|share| share.arguments(MEMORY)).unwrap_or_default());
    command.args(["-nodefaults", "-nographic", "-monitor", "none", "-no-reboot"]);
    command.arg("-serial").arg(format!("file:{}", console.display())).args(["-serial", "stdio"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    // panic=-1: a panic ends the machine at once. norandmaps: the emulator uses what it has translated of a program again
    // for the next process only at the same addresses. tsc=reliable: each look at the other clocks is a look at a device.
    command.args(["-append", "console=ttyS0 quiet panic=-1 oops=panic norandmaps tsc=reliable"]);
    if !interactive {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    let child = command.spawn();
    Ok(Machine(child.context("starting qemu-system-x86_64")?))
}

/// Shows what the job says until the machine stops, and passes it on; returns the job's exit code, if it came to it.
fn follow(child: &mut Child, series: &str, limit: Duration, mut said: impl FnMut(&str)) -> Result<Option<i32>> {
    let output = child.stdout.take().context("qemu has no output")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let (start, mut exit) = (Instant::now(), None);
    loop {
        let line = match lines.recv_timeout(SILENCE.min(limit.saturating_sub(start.elapsed()))) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => return Ok(exit),
            Err(RecvTimeoutError::Timeout) if start.elapsed() >= limit => bail!("not through after {limit:?}"),
            Err(RecvTimeoutError::Timeout) => bail!("the machine has said nothing for {SILENCE:?}"),
        };
        if line.strip_prefix(MARK).is_some_and(|said| said.starts_with(DATA)) {
            said(&line);
            continue;
        }
        let _ = writeln!(stdout(), "{line}");
        match line.strip_prefix(MARK).and_then(|said| said.split_once(' ')) {
            Some(("kernel", release)) => {
                if !kernel::is_of_series(release, series) {
                    bail!("Linux {release} has booted instead of {series}");
                }
                println!("booted in {:.1} s", start.elapsed().as_secs_f64());
            }
            Some(("exit", code)) => exit = code.parse().ok(),
            _ => said(&line),
        }
    }
}

fn show_tail(console: &Path) {
    let Ok(bytes) = fs::read(console) else { return };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    println!("--- the last messages of the kernel ({})", console.display());
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
        println!("{line}");
    }
    println!("---");
}
