//! Debian packages, and commands that change this machine: each is shown before it runs.

use std::{cell::OnceCell, collections::BTreeSet, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use crate::toolchain::in_path;

/// Runs before an installation: the servers that tests start by themselves must not run as services too. A machine
/// that has such a policy already keeps its own.
const NO_SERVICES: &str = "policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\\nexit 101\\n' > $policy && chmod 755 $policy
fi
";

const INSTALL: &str = "apt-get install --yes --no-install-recommends --quiet -o DPkg::Lock::Timeout=300";

/// apt-get, on a machine that has it.
#[derive(Debug)]
pub struct Apt {
    // Found out when it matters: asking sudo leaves a trace in the machine's log.
    rights: OnceCell<Rights>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rights {
    Root,
    /// sudo asks no password.
    Sudo,
    None,
}

impl Apt {
    /// apt-get, if this machine has it.
    pub fn find() -> Option<Self> {
        in_path("apt-get").map(|_| Self { rights: OnceCell::new() })
    }

    /// Whether this user may install packages.
    pub fn may_install(&self) -> bool {
        self.rights() != Rights::None
    }

    /// Installs packages, after `apt-get update` only where that is needed. Without the right to do so the error names
    /// the command.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let packages: BTreeSet<&str> = packages.iter().copied().collect();
        let packages: Vec<&str> = packages.into_iter().collect();
        let command = format!("{INSTALL} {}", packages.join(" "));
        if !self.may_install() {
            bail!("not root: run `sudo apt-get update && sudo {command}` and try again");
        }
        let unknown = packages.iter().any(|package| !self.offers(package));
        if unknown {
            self.update()?;
        }
        match self.shell(&command) {
            Ok(()) => Ok(()),
            // Lists that are too old name files that the servers have no more.
            Err(_) if !unknown => {
                self.update()?;
                self.shell(&command)
            }
            Err(error) => Err(error),
        }
    }

    /// Fetches the lists of packages.
    pub fn update(&self) -> Result<()> {
        ensure!(self.may_install(), "not root: run `sudo apt-get update` and try again");
        self.shell("apt-get update --quiet -o DPkg::Lock::Timeout=300")
    }

    /// Whether a package can be installed, as far as the lists here tell.
    pub fn offers(&self, package: &str) -> bool {
        let output = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output();
        output.is_ok_and(|output| has_candidate(&String::from_utf8_lossy(&output.stdout)))
    }

    fn rights(&self) -> Rights {
        let sudo = || Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success());
        *self.rights.get_or_init(|| match nix::unistd::geteuid().is_root() {
            true => Rights::Root,
            false if sudo() => Rights::Sudo,
            false => Rights::None,
        })
    }

    fn shell(&self, command: &str) -> Result<()> {
        let script = format!("set -e\nexport DEBIAN_FRONTEND=noninteractive\n{NO_SERVICES}{command}");
        println!("running: {command}");
        let mut shell = match self.rights() {
            Rights::Sudo => {
                let mut sudo = Command::new("sudo");
                sudo.args(["-n", "sh"]);
                sudo
            }
            Rights::Root | Rights::None => Command::new("sh"),
        };
        let status = shell.args(["-c", &script]).status().context("starting a shell")?;
        ensure!(status.success(), "this failed: {command}");
        Ok(())
    }
}

/// Fetches the file of one package into a directory.
pub fn download(package: &str, directory: &Path) -> Result<()> {
    let mut command = Command::new("apt-get");
    // The user that apt fetches as may not write here; as root it would only complain about that.
    command.args(["download", "--quiet", "-o", "APT::Sandbox::User=root", package]).current_dir(directory);
    run_shown(&mut command)
}

/// Runs a command after showing it.
pub fn run_shown(command: &mut Command) -> Result<()> {
    println!("running: {}", shown(command));
    let status = command.status().with_context(|| format!("starting {}", shown(command)))?;
    ensure!(status.success(), "this failed: {}", shown(command));
    Ok(())
}

/// A command as a person would type it.
fn shown(command: &Command) -> String {
    let variables = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?, value?.to_str()?)));
    let variables = variables.map(|(name, value)| format!("{name}={value}"));
    let words = [command.get_program()].into_iter().chain(command.get_args());
    variables.chain(words.map(|word| word.to_string_lossy().into_owned())).collect::<Vec<_>>().join(" ")
}

fn has_candidate(policy: &str) -> bool {
    let candidate = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "));
    candidate.is_some_and(|version| version != "(none)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_a_candidate_is_not_offered() {
        assert!(has_candidate("cpio:\n  Installed: (none)\n  Candidate: 2.13\n  Version table:\n"));
        assert!(!has_candidate("gone:\n  Installed: 1\n  Candidate: (none)\n"));
        assert!(!has_candidate(""));
    }
}
