//! The initramfs: busybox, a few network tools, kernel modules and a job's programs. Its init does the job and powers off.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use super::{Job, MARK, kernel::Kernel, share};
use crate::{
    build::workspace,
    toolchain::{Toolchain, in_path},
};

/// Modules that tests may need; those that the kernel has built in, or lacks, are left out.
const MODULES: [&str; 29] = [
    "veth",
    "dummy",
    "tun",
    "macvlan",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "raw_diag",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "sch_netem",
    "sch_fq",
    "nf_tables",
    "nft_ct",
    "nft_chain_nat",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_reject",
    "nft_reject_ipv4",
    "nft_reject_inet",
    "nft_counter",
    "nft_numgen",
    "bridge",
    "ip_vs",
    "ip_vs_wrr",
    "virtio_pci",
    "virtiofs",
];

/// What the programs in /usr want to find in /etc, where it is there.
const SETTINGS: [&str; 5] = ["alternatives", "group", "java-17-openjdk", "passwd", "ssl/openssl.cnf"];

/// Where the guest finds the clients of the loss matrix.
const MATRIX: &str = "/matrix";

/// Tools beside busybox, with the libraries that they need. Tests cannot do without the first.
const TOOLS: [&str; 5] = ["ip", "tc", "nft", "ss", "ipvsadm"];

/// How many times slower than a usual machine an emulated one is taken to be.
const SLOWNESS: &str = "6";

/// Makes the initramfs and returns its path.
pub fn build(kernel: &Kernel, job: &Job, emulated: bool) -> Result<PathBuf> {
    let root = kernel.work.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("removing {}", root.display()))?;
    }
    for directory in ["bin", "dev", "etc", "modules", "proc", "run", "sys", "tmp", "tools", "usr/bin"] {
        let directory = root.join(directory);
        fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let busybox = in_path("busybox").context("busybox is not installed; run `cargo xtask setup`")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    symlink("busybox", root.join("bin/sh")).context("linking the shell")?;

    let objcopy = Toolchain::find().ok().and_then(|toolchain| toolchain.objcopy);
    for (program, name) in &job.programs {
        copy_stripped(program, &root.join("bin").join(name), objcopy.as_deref())?;
        // Of those that are not linked statically.
        copy_libraries(program, &root)?;
    }
    let mut tools = TOOLS.iter();
    let needed = tools.next().and_then(|tool| in_path(tool)).context("iproute2 is not installed")?;
    for tool in [needed].into_iter().chain(tools.filter_map(|tool| in_path(tool))) {
        copy_with_libraries(&tool, &root)?;
    }
    if job.shared {
        copy_settings(&root)?;
        let matrix = workspace().join("tests/tests/matrix");
        copy_tree(&matrix, &root.join(MATRIX.trim_start_matches('/')))?;
    }
    let modules = copy_modules(kernel, &root.join("modules"))?;
    let init = root.join("init");
    fs::write(&init, script(&modules, job, emulated)).context("writing the init script")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("making the init script executable")?;
    pack(&root, &kernel.work.join("initramfs"))
}

/// What the guest does, from the first process to the end.
fn script(modules: &[String], job: &Job, emulated: bool) -> String {
    let load: String = modules.iter().map(|name| format!("insmod /modules/{name}\n")).collect();
    let slowness = if emulated { SLOWNESS } else { "1" };
    // Emulators translate again whatever a program compiles for itself.
    let options = if emulated { "--jitless" } else { "" };
    let share = if job.shared { format!("mount -t virtiofs -o ro {} /usr\n", share::TAG) } else { String::new() };
    let command = &job.command;
    format!(
        "#!/bin/sh
/bin/busybox --install -s /bin
export PATH=/tools:/usr/bin:/usr/sbin:/bin HOME=/tmp TMPDIR=/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
exec </dev/null >/dev/ttyS1 2>&1
ip link set lo up
echo \"{MARK}kernel $(uname -r)\"
{load}{share}ulimit -n 65536
export SLUICE_BIN=/bin/sluice SLUICE_TEST_CLIENT=/bin/sluice-test-client SLUICE_TEST_MATRIX={MATRIX}
export SLUICE_TEST_SLOWNESS={slowness} RUST_BACKTRACE=1 NODE_OPTIONS={options}
{command}
echo \"{MARK}exit $?\"
sync
/bin/busybox poweroff -f
"
    )
}

/// Copies the modules and what they depend on; returns the file names in the order of loading.
fn copy_modules(kernel: &Kernel, to: &Path) -> Result<Vec<String>> {
    let table = kernel.modules.join("modules.dep");
    let table = fs::read_to_string(&table).with_context(|| format!("reading {}", table.display()))?;
    let mut names = Vec::new();
    for file in loading_order(&table, &MODULES) {
        let from = kernel.modules.join(file);
        let name = format!("{:03}-{}.ko", names.len(), module_name(file));
        unpack_module(&from, &to.join(&name))?;
        names.push(name);
    }
    Ok(names)
}

/// The files of these modules, each after what it depends on. A line of `modules.dep` is "file: file file", where the
/// last is to be loaded first.
fn loading_order<'a>(table: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines = table.lines().filter_map(|line| line.split_once(':'));
    let by_name: BTreeMap<String, (&str, &str)> =
        lines.map(|(file, needs)| (module_name(file), (file, needs))).collect();
    let mut order = Vec::new();
    for (file, needs) in wanted.iter().filter_map(|name| by_name.get(*name)) {
        for next in needs.split_whitespace().rev().chain([*file]) {
            if !order.contains(&next) {
                order.push(next);
            }
        }
    }
    order
}

/// "kernel/net/ipv4/inet_diag.ko.xz" is the module inet_diag; dashes in file names are underscores in module names.
fn module_name(file: &str) -> String {
    let file = file.rsplit('/').next().unwrap_or(file);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn unpack_module(from: &Path, to: &Path) -> Result<()> {
    let program = match from.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return copy(from, to),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => bail!("{} is packed in an unknown way", from.display()),
    };
    let output = fs::File::create(to).with_context(|| format!("making {}", to.display()))?;
    let status = Command::new(program).args(["--decompress", "--stdout"]).arg(from).stdout(output).status();
    ensure!(status.with_context(|| format!("starting {program}"))?.success(), "{program} failed on {}", from.display());
    Ok(())
}

/// Puts a program into /tools, before all others of its name, and its libraries where it looks for them.
fn copy_with_libraries(program: &Path, root: &Path) -> Result<()> {
    let name = program.file_name().context("a program without a name")?;
    copy(program, &root.join("tools").join(name))?;
    copy_libraries(program, root)
}

/// Puts what a program is linked with where it looks for it.
fn copy_libraries(program: &Path, root: &Path) -> Result<()> {
    let output = Command::new("ldd").arg(program).output().context("starting ldd")?;
    let text = String::from_utf8(output.stdout).context("reading what ldd says")?;
    for library in libraries(&text) {
        let to = root.join(library.trim_start_matches('/'));
        if let Some(directory) = to.parent() {
            fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        }
        copy(Path::new(library), &to)?;
    }
    Ok(())
}

/// What the host's programs find in /etc, and shells where scripts look for them.
fn copy_settings(root: &Path) -> Result<()> {
    for name in SETTINGS {
        let from = Path::new("/etc").join(name);
        if from.exists() {
            copy_tree(&from, &root.join("etc").join(name))?;
        }
    }
    symlink("/usr/bin/bash", root.join("bin/bash")).context("linking bash")
}

/// Copies a file or a directory, links as links.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    if let Some(directory) = to.parent() {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    }
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().context("starting cp")?;
    ensure!(status.success(), "copying {} to {} failed", from.display(), to.display());
    Ok(())
}

/// Lines like "libmnl.so.0 => /lib/libmnl.so.0 (0x7f)" and "/lib64/ld-linux-x86-64.so.2 (0x7f)".
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// Debug information would double the size of what the guest has to unpack.
fn copy_stripped(from: &Path, to: &Path, objcopy: Option<&Path>) -> Result<()> {
    let Some(objcopy) = objcopy else { return copy(from, to) };
    let status = Command::new(objcopy).arg("--strip-debug").arg(from).arg(to).stderr(Stdio::inherit()).status();
    ensure!(status.context("starting objcopy")?.success(), "objcopy failed on {}", from.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Uncompressed: unpacking takes an emulated processor longer than reading.
fn pack(root: &Path, to: &Path) -> Result<PathBuf> {
    let output = fs::File::create(to).with_context(|| format!("making {}", to.display()))?;
    let pipeline = "find . -mindepth 1 | cpio --create --format=newc --owner=0:0 --quiet";
    let status = Command::new("sh").args(["-c", pipeline]).current_dir(root).stdout(output).status();
    ensure!(status.context("starting cpio")?.success(), "cpio failed on {}", root.display());
    Ok(to.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let table = "kernel/a/nft-x.ko.xz: kernel/b/core.ko.xz kernel/c/base.ko.xz\nkernel/b/core.ko.xz: \
                     kernel/c/base.ko.xz\nkernel/c/base.ko.xz:\nkernel/d/other.ko.xz:\n";
        let order = loading_order(table, &["nft_x", "missing", "core"]);
        assert_eq!(order, ["kernel/c/base.ko.xz", "kernel/b/core.ko.xz", "kernel/a/nft-x.ko.xz"]);
    }

    #[test]
    fn reads_what_ldd_says() {
        let text =
            "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so (0x3)\n\tstatically linked\n";
        assert_eq!(libraries(text).collect::<Vec<_>>(), ["/lib/libc.so.6", "/lib64/ld.so"]);
    }

    #[test]
    fn the_exit_code_is_that_of_the_job() {
        let limit = Duration::ZERO;
        let job = Job { programs: Vec::new(), command: "job".to_owned(), interactive: false, shared: false, limit };
        assert!(script(&[], &job, true).contains(&format!("\njob\necho \"{MARK}exit $?\"\n")));
    }
}
