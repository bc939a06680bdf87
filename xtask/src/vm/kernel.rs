//! Kernels for virtual machines: Debian's cloud kernels, fetched once and kept in target/vm.

use std::{
    cmp::Ordering,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    apt::{Apt, download},
    build::target_dir,
};

/// A kernel, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` will say.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The directory with its modules and `modules.dep`.
    pub modules: PathBuf,
    /// A directory for what is made from it.
    pub work: PathBuf,
}

/// Finds the newest kernel of a series, for example "6.12", and fetches and unpacks it if need be.
pub fn obtain(series: &str) -> Result<Kernel> {
    ensure!(is_series(series), "{series:?} is no kernel series like 6.12");
    let work = target_dir().join("vm").join(series);
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let package = match cached(&work)? {
        Some(package) => package,
        None => fetch(series, &work)?,
    };
    let tree = work.join("tree");
    if !tree.join("complete").exists() {
        unpack(&package, &tree)?;
    }
    let release = only_entry(&tree.join("lib/modules"))?;
    ensure!(is_of_series(&release, series), "{} is Linux {release}, not {series}", package.display());
    let image = tree.join("boot").join(format!("vmlinuz-{release}"));
    let modules = tree.join("lib/modules").join(&release);
    Ok(Kernel { release, image, modules, work })
}

/// Whether a release like "6.1.0-56-cloud-amd64" belongs to a series like "6.1". 6.12.3 does not belong to 6.1.
pub fn is_of_series(release: &str, series: &str) -> bool {
    let rest = release.strip_prefix(series);
    rest.is_some_and(|rest| !rest.starts_with(|character: char| character.is_ascii_digit()))
}

fn is_series(text: &str) -> bool {
    let parts = text.split('.').map(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    text.contains('.') && parts.into_iter().all(|number| number)
}

fn cached(work: &Path) -> Result<Option<PathBuf>> {
    let entries = fs::read_dir(work).with_context(|| format!("reading {}", work.display()))?;
    let files = entries.filter_map(|entry| Some(entry.ok()?.path()));
    Ok(files.filter(|file| file.extension().is_some_and(|extension| extension == "deb")).max())
}

fn fetch(series: &str, work: &Path) -> Result<PathBuf> {
    let by_hand = format!("put a linux-image package (.deb) of Linux {series} into {} by hand", work.display());
    let mut names = package_names(series).with_context(|| by_hand.clone())?;
    if names.is_empty()
        && let Some(apt) = Apt::find().filter(Apt::may_install)
    {
        // Images of containers come without lists of packages.
        apt.update()?;
        names = package_names(series)?;
    }
    let Some(newest) = names.into_iter().max_by(|left, right| compare_versions(left, right)) else {
        bail!("apt knows no cloud kernel {series}; run `apt-get update`, or {by_hand}");
    };
    download(&newest, work).with_context(|| format!("run `apt-get update`, or {by_hand}"))?;
    cached(work)?.with_context(|| format!("apt-get left no package in {}", work.display()))
}

/// The packages of Debian's cloud kernels of this series.
fn package_names(series: &str) -> Result<Vec<String>> {
    // The dot after the series keeps 6.12 out of 6.1.
    let pattern = format!("^linux-image-{}\\..*-cloud-amd64-unsigned$", series.replace('.', "\\."));
    let output = Command::new("apt-cache").args(["search", "--names-only", &pattern]).output();
    let output = output.context("starting apt-cache, which only Debian and its relatives have")?;
    let text = String::from_utf8(output.stdout).context("reading what apt-cache says")?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn unpack(package: &Path, tree: &Path) -> Result<()> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("removing {}", tree.display()))?;
    }
    let run = |command: &mut Command| -> Result<()> {
        let status = command.status().with_context(|| format!("starting {command:?}"))?;
        ensure!(status.success(), "{command:?} failed");
        Ok(())
    };
    run(Command::new("dpkg-deb").arg("--extract").arg(package).arg(tree))?;
    let release = only_entry(&tree.join("lib/modules"))?;
    // The package leaves this to its installation.
    run(Command::new(depmod()).arg("--basedir").arg(tree).arg(&release))?;
    fs::write(tree.join("complete"), "").context("marking the kernel as unpacked")
}

/// depmod is often outside the PATH of a user.
fn depmod() -> &'static str {
    let sbin = "/usr/sbin/depmod";
    if Path::new(sbin).exists() { sbin } else { "depmod" }
}

fn only_entry(directory: &Path) -> Result<String> {
    let mut entries = fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let entry = entries.next().with_context(|| format!("{} is empty", directory.display()))?;
    Ok(entry.context("reading a directory")?.file_name().to_string_lossy().into_owned())
}

/// Compares runs of digits as numbers, so that 6.1.0-9 comes before 6.1.0-10.
fn compare_versions(left: &str, right: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        let runs = text.split(|character: char| !character.is_ascii_digit());
        runs.filter_map(|run| run.parse().ok()).collect()
    };
    numbers(left).cmp(&numbers(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_is_not_a_prefix() {
        assert!(is_of_series("6.1.0-56-cloud-amd64", "6.1"));
        assert!(is_of_series("6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(!is_of_series("6.12.117+deb12-cloud-amd64", "6.1"));
    }

    #[test]
    fn the_newest_is_the_highest_number() {
        let names = ["linux-image-6.1.0-9-cloud-amd64-unsigned", "linux-image-6.1.0-56-cloud-amd64-unsigned"];
        assert_eq!(names.into_iter().max_by(|left, right| compare_versions(left, right)), Some(names[1]));
    }

    #[test]
    fn only_numbers_make_a_series() {
        assert!(is_series("6.12"));
        assert!(!is_series("6") && !is_series("../x.y") && !is_series("6."));
    }
}
