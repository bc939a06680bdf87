//! The compiler and linker of the eBPF programs: where they are found and how they are called.
//!
//! `agent/build.rs` includes this file too, so it stands on `std` alone. Two kinds of toolchain can compile `core` for
//! `bpfel-unknown-none`: Debian's rustc-web, which brings it ready made, and a rustup nightly, which builds it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Rust target of the eBPF programs.
pub const TARGET: &str = "bpfel-unknown-none";

const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CARGO: &str = "/usr/bin/cargo";

/// What compiles the eBPF programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toolchain {
    /// Which compiler.
    pub compiler: Compiler,
    /// The `bpf-linker` program.
    pub linker: PathBuf,
    /// An `objcopy` that understands eBPF objects, where there is one.
    pub objcopy: Option<PathBuf>,
}

/// A compiler that can produce `core` for the eBPF target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compiler {
    /// Debian's own cargo and rustc, with `core` from libstd-rust-web-dev-bpf.
    Debian,
    /// `rustup run nightly`, with `core` compiled from the component rust-src.
    Nightly,
}

impl Toolchain {
    /// Finds a complete toolchain; the error is a sentence that names what is missing.
    pub fn find() -> Result<Self, String> {
        let compiler = Compiler::find().ok_or(
            "no compiler for eBPF: neither Debian's rustc-web with libstd-rust-web-dev-bpf, nor a rustup nightly with rust-src",
        )?;
        let linker = find_linker().ok_or("bpf-linker is neither in PATH nor among cargo's installed programs")?;
        let objcopy = find_objcopy(compiler);
        Ok(Self { compiler, linker, objcopy })
    }

    /// The command that compiles the package `sluice-ebpf` of the workspace at `root`, with these features of it and
    /// `target_dir` for its output.
    ///
    /// It starts from a clean environment: cargo and rustup tell a build script about *their* toolchain and flags, and
    /// all of that would be wrong here.
    pub fn build(&self, root: &Path, features: &str, target_dir: &Path) -> Command {
        let mut command = match self.compiler {
            Compiler::Debian => {
                let mut command = Command::new(DEBIAN_CARGO);
                clean(&mut command);
                // aya-ebpf uses an unstable feature; Debian's compiler is a stable release.
                command.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
                command
            }
            Compiler::Nightly => {
                let mut command = Command::new("rustup");
                clean(&mut command);
                command.args(["run", "nightly", "cargo", "build", "-Zbuild-std=core"]);
                command
            }
        };
        let flags = [
            OsString::from("-Ctarget-cpu=v3"),
            OsString::from("-Clink-arg=--btf"),
            // BTF is made from the debug information.
            OsString::from("-Cdebuginfo=2"),
            OsString::from("--cfg=bpf_target_arch=\"x86_64\""),
            joined(&[OsStr::new("-Clinker="), self.linker.as_os_str()]),
        ];
        command
            .current_dir(root)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join(OsStr::new("\u{1f}")))
            .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
            .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
            .env("CARGO_PROFILE_RELEASE_LTO", "true")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .args(["--locked", "--release", "--package", "sluice-ebpf", "--features", features, "--target", TARGET])
            .arg("--target-dir")
            .arg(target_dir);
        command
    }

    /// Where [`Toolchain::build`] leaves the object.
    pub fn object(target_dir: &Path) -> PathBuf {
        target_dir.join(TARGET).join("release/sluice-ebpf")
    }
}

impl Compiler {
    /// The first compiler found that has what it needs to produce `core`.
    pub fn find() -> Option<Self> {
        if has_prebuilt_core() {
            Some(Self::Debian)
        } else if has_nightly_source() {
            Some(Self::Nightly)
        } else {
            None
        }
    }

    /// The major version of the LLVM inside this compiler; a linker with an older one cannot read its output.
    pub fn llvm_major(self) -> Option<u32> {
        let mut command = match self {
            Self::Debian => Command::new(DEBIAN_RUSTC),
            Self::Nightly => {
                let mut command = Command::new("rustup");
                command.args(["run", "nightly", "rustc"]);
                command
            }
        };
        clean(&mut command);
        let text = output(command.arg("-vV"))?;
        let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
        version.split('.').next()?.parse().ok()
    }
}

/// The first executable file of this name in PATH, or where administrators' programs are, which users often have not
/// in theirs.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let administration = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(administration)
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

/// bpf-linker in PATH, or where `cargo install` puts it.
pub fn find_linker() -> Option<PathBuf> {
    let installed = cargo_home().map(|home| home.join("bin/bpf-linker")).filter(|file| is_executable(file));
    in_path("bpf-linker").or(installed)
}

/// Cargo's own directory: CARGO_HOME, else `~/.cargo`.
pub fn cargo_home() -> Option<PathBuf> {
    let default = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(default)
}

fn has_prebuilt_core() -> bool {
    if !is_executable(Path::new(DEBIAN_RUSTC)) || !is_executable(Path::new(DEBIAN_CARGO)) {
        return false;
    }
    let mut command = Command::new(DEBIAN_RUSTC);
    clean(&mut command);
    let library = output(command.args(["--print", "target-libdir", "--target", TARGET]));
    library.is_some_and(|directory| Path::new(directory.trim()).is_dir())
}

fn has_nightly_source() -> bool {
    let mut command = Command::new("rustup");
    clean(&mut command);
    let sysroot = output(command.args(["run", "nightly", "rustc", "--print", "sysroot"]));
    sysroot.is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir())
}

/// LLVM's objcopy beside the compiler's LLVM, or the copy that rustc ships for its own use.
fn find_objcopy(compiler: Compiler) -> Option<PathBuf> {
    let debian = compiler.llvm_major().map(|major| PathBuf::from(format!("/usr/lib/llvm-{major}/bin/llvm-objcopy")));
    let beside_rustc = || {
        let library = output(Command::new("rustc").args(["--print", "target-libdir"]))?;
        Some(Path::new(library.trim()).parent()?.join("bin/rust-objcopy"))
    };
    debian.filter(|file| is_executable(file)).or_else(|| beside_rustc().filter(|file| is_executable(file)))
}

/// Takes away what an outer cargo, rustup or clippy says about itself, and keeps where registries and caches are.
fn clean(command: &mut Command) {
    const KEPT: [&str; 5] = ["CARGO_HOME", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTRIES_", "CARGO_REGISTRY_"];
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_cargo = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let of_rustc = text.starts_with("RUSTC") || text.starts_with("RUSTFLAGS") || text.starts_with("CLIPPY");
        if of_cargo || of_rustc || text == "RUSTUP_TOOLCHAIN" || text == "LD_LIBRARY_PATH" {
            command.env_remove(&name);
        }
    }
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

fn joined(parts: &[&OsStr]) -> OsString {
    parts.iter().copied().collect()
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
