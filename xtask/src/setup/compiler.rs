//! The compiler and the linker of the eBPF programs.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{Apt, run_shown},
    toolchain::{Compiler, find_linker, in_path},
};

/// Debian's compiler with `core` for eBPF.
const DEBIAN: [&str; 3] = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf"];

const LINKER_VERSION: &str = "0.13.0";

/// The LLVM versions that this version of bpf-linker can be built with.
const LINKER_LLVM: RangeInclusive<u32> = 21..=23;

/// Makes sure of both.
pub fn ensure_ready(apt: Option<&Apt>) -> Result<()> {
    let compiler = match Compiler::find() {
        Some(compiler) => compiler,
        None => install_compiler(apt)?,
    };
    let needed = compiler.llvm_major().context("the compiler does not say which LLVM it has")?;
    let reason = match find_linker() {
        None => "bpf-linker is missing: it links the eBPF programs".to_owned(),
        Some(linker) => match linker_state(&linker) {
            LinkerState::Works(Some(major)) if major < needed => {
                format!("bpf-linker has LLVM {major}, older than the compiler's {needed}")
            }
            LinkerState::Works(_) => return Ok(()),
            LinkerState::LacksLibrary(library) => format!("bpf-linker needs {library}, which is gone"),
        },
    };
    println!("{reason}");
    install_linker(apt, needed)
}

fn install_compiler(apt: Option<&Apt>) -> Result<Compiler> {
    println!("missing: a compiler for eBPF: it must have or make `core` for the target bpfel-unknown-none");
    let by_debian = apt.filter(|apt| apt.may_install());
    if let Some(apt) = by_debian
        && apt.install(&DEBIAN).is_ok()
        && let Some(compiler) = Compiler::find()
    {
        return Ok(compiler);
    }
    if in_path("rustup").is_some() {
        let install = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
        if run_shown(Command::new("rustup").args(install)).is_ok()
            && let Some(compiler) = Compiler::find()
        {
            return Ok(compiler);
        }
    }
    bail!(
        "no compiler for eBPF can be installed here. Run one of these and try again:\n  \
         on Debian, as root: apt-get update && apt-get install --no-install-recommends {}\n  \
         elsewhere: rustup toolchain install nightly --profile minimal --component rust-src",
        DEBIAN.join(" ")
    )
}

enum LinkerState {
    /// With this LLVM, if it is linked dynamically.
    Works(Option<u32>),
    LacksLibrary(String),
}

/// What the linker's libraries tell. It does not tell its LLVM itself.
fn linker_state(linker: &Path) -> LinkerState {
    let output = Command::new("ldd").arg(linker).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    parse_libraries(&text)
}

fn parse_libraries(text: &str) -> LinkerState {
    if let Some(line) = text.lines().find(|line| line.contains("not found")) {
        return LinkerState::LacksLibrary(line.split_whitespace().next().unwrap_or("a library").to_owned());
    }
    // "libLLVM.so.22.1", before LLVM 18 "libLLVM-17.so".
    let version = text.split_whitespace().find_map(|word| {
        let rest = word.strip_prefix("libLLVM.so.").or_else(|| word.strip_prefix("libLLVM-"))?;
        rest.split(['.', '-']).next()?.parse().ok()
    });
    LinkerState::Works(version)
}

fn install_linker(apt: Option<&Apt>, needed: u32) -> Result<()> {
    let wanted: Vec<u32> = LINKER_LLVM.filter(|major| *major >= needed).collect();
    if wanted.is_empty() {
        bail!("the compiler has LLVM {needed}, which bpf-linker {LINKER_VERSION} does not know: a newer one is needed");
    }
    let (major, prefix) = find_or_install_llvm(apt, &wanted)?;
    let feature = format!("llvm-{major}");
    let mut command = crate::build::cargo();
    command.env("LLVM_PREFIX", &prefix).args(["install", "bpf-linker", "--version", LINKER_VERSION, "--force"]);
    command.args(["--locked", "--no-default-features", "--features", &feature]);
    run_shown(&mut command)?;
    match find_linker() {
        Some(_) => Ok(()),
        None => bail!("bpf-linker was installed and is not found: is cargo's bin directory elsewhere?"),
    }
}

/// The libraries and headers of an LLVM that is not older than the compiler's.
fn find_or_install_llvm(apt: Option<&Apt>, wanted: &[u32]) -> Result<(u32, PathBuf)> {
    if let Some(found) = wanted.iter().find_map(|major| Some((*major, find_llvm(*major)?))) {
        return Ok(found);
    }
    if let Some(apt) = apt.filter(|apt| apt.may_install()) {
        let offered = |major: &&u32| apt.offers(&format!("llvm-{major}-dev"));
        let major = match wanted.iter().find(offered) {
            Some(major) => Some(*major),
            None => {
                apt.update()?;
                wanted.iter().find(offered).copied()
            }
        };
        if let Some(major) = major {
            // The C++ library that LLVM is linked with comes with g++.
            apt.install(&[&format!("llvm-{major}-dev"), "g++"])?;
            if let Some(prefix) = find_llvm(major) {
                return Ok((major, prefix));
            }
        }
    }
    let first = wanted.first().copied().unwrap_or_default();
    bail!(
        "bpf-linker needs the development files of LLVM {first} or newer, and they cannot be installed here. \
         Run this as root and try again:\n  apt-get update && apt-get install --no-install-recommends llvm-{first}-dev g++\n\
         or put a bpf-linker {LINKER_VERSION} with LLVM {first} or newer into PATH."
    )
}

/// Where an LLVM of this version is, if its development files are there.
fn find_llvm(major: u32) -> Option<PathBuf> {
    let debian = PathBuf::from(format!("/usr/lib/llvm-{major}"));
    if debian.join("bin/llvm-config").exists() && debian.join("include/llvm-c/Core.h").exists() {
        return Some(debian);
    }
    ["llvm-config", &format!("llvm-config-{major}"), &format!("llvm-config{major}")].iter().find_map(|name| {
        let ask = |question: &str| {
            let output = Command::new(name).arg(question).output().ok().filter(|output| output.status.success())?;
            Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
        };
        let version = ask("--version")?;
        let same = version.split('.').next()?.parse() == Ok(major);
        let prefix = PathBuf::from(ask("--prefix")?);
        (same && prefix.join("include/llvm-c/Core.h").exists()).then_some(prefix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_linker_tells_its_llvm_by_its_library() {
        let text = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6\n";
        assert!(matches!(parse_libraries(text), LinkerState::Works(Some(22))));
        assert!(matches!(parse_libraries("\tlibLLVM-17.so.1 => /lib/x (0x1)\n"), LinkerState::Works(Some(17))));
        assert!(matches!(parse_libraries("\tnot a dynamic executable\n"), LinkerState::Works(None)));
    }

    #[test]
    fn a_library_that_is_gone_is_noticed() {
        let state = parse_libraries("\tlibLLVM.so.22.1 => not found\n");
        assert!(matches!(state, LinkerState::LacksLibrary(library) if library == "libLLVM.so.22.1"));
    }
}
