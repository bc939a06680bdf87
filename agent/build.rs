//! Compiles the eBPF programs into `OUT_DIR/sluice-ebpf`, and those that are observed into `OUT_DIR/sluice-ebpf-observed`,
//! so that plain `cargo build`, `test` and `clippy` work and the agent carries its programs inside.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

// Shared with `cargo xtask setup`, which makes sure that this toolchain is there.
#[allow(dead_code)]
#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use toolchain::Toolchain;

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = manifest.parent().ok_or("the package has no workspace above it")?;
    let out = PathBuf::from(env::var("OUT_DIR")?);

    for source in ["ebpf", "common", "Cargo.lock", "Cargo.toml", "agent/build.rs", "xtask/src/toolchain.rs"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }

    let toolchain = Toolchain::find().map_err(|missing| format!("{missing}; run `cargo xtask setup`"))?;
    // One directory for every profile: the eBPF object is always a release build. It is not the outer cargo's own
    // directory, whose lock is held while this runs.
    let target_dir = shared_target_dir(&out).join("ebpf");
    for (features, name) in [("", "sluice-ebpf"), ("observe", "sluice-ebpf-observed")] {
        compile(toolchain.build(root, features, &target_dir))?;
        let object = out.join(name);
        fs::copy(Toolchain::object(&target_dir), &object)?;
        if let Some(objcopy) = &toolchain.objcopy {
            strip(objcopy, &object)?;
        }
    }
    Ok(())
}

/// Runs the compiler. Its warnings become cargo's; its errors are shown in full.
fn compile(mut command: Command) -> Result<(), Box<dyn Error>> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{messages}");
        return Err("the eBPF programs do not compile: the compiler's messages are above".into());
    }
    for warning in messages.lines().filter(|line| line.starts_with("warning")) {
        println!("cargo::warning=ebpf: {warning}");
    }
    Ok(())
}

/// Drops the DWARF sections, which the kernel does not read. BTF stays.
fn strip(objcopy: &Path, object: &Path) -> Result<(), Box<dyn Error>> {
    let mut command = Command::new(objcopy);
    let status = command.arg("--strip-debug").arg(object).status();
    let status = status.map_err(|error| format!("cannot start {}: {error}", objcopy.display()))?;
    if !status.success() {
        return Err(format!("{} --strip-debug failed on {}", objcopy.display(), object.display()).into());
    }
    Ok(())
}

/// The workspace's target directory, which cargo marks as a cache; `OUT_DIR` itself where there is no mark.
fn shared_target_dir(out: &Path) -> &Path {
    out.ancestors().find(|directory| directory.join("CACHEDIR.TAG").exists()).unwrap_or(out)
}
