//! Where cgroups (v2) are mounted, which one a process is in, and by which number the kernel knows them.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// The directory where the cgroup2 hierarchy is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// When there is none.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    find_root(&mounts).context(
        "no cgroup2 file system is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup`) or name a cgroup with --cgroup",
    )
}

/// The cgroup of a process, as a directory.
///
/// # Errors
/// When the process is gone.
pub fn of_process(pid: u32) -> Result<PathBuf> {
    let file = format!("/proc/{pid}/cgroup");
    let text = fs::read_to_string(&file).with_context(|| format!("reading {file}: is there a process {pid}?"))?;
    let path =
        text.lines().find_map(|line| line.strip_prefix("0::")).with_context(|| format!("{file} names no cgroup2"))?;
    Ok(below(&root()?, path))
}

/// The processes in a cgroup and below it. Those that cannot be listed are left out.
pub fn processes(cgroup: &Path) -> Vec<u32> {
    let (mut found, mut left) = (Vec::new(), vec![cgroup.to_owned()]);
    while let Some(directory) = left.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        let below = fs::read_dir(&directory).into_iter().flatten().flatten();
        left.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()));
    }
    found
}

/// The kernel's number of a cgroup, which `bpf_get_current_cgroup_id` gives too. `path` is a directory, or the name of
/// a cgroup as /proc/PID/cgroup has it.
///
/// # Errors
/// When there is no such cgroup.
pub fn id(path: &Path) -> Result<u64> {
    let root = root()?;
    let directory = if path.starts_with(&root) { path.to_owned() } else { below(&root, path) };
    let metadata = fs::metadata(&directory).with_context(|| format!("there is no cgroup {}", directory.display()))?;
    ensure!(metadata.is_dir(), "{} is no cgroup: it is no directory", directory.display());
    if !directory.join("cgroup.procs").exists() {
        bail!("{} is no cgroup: it has no cgroup.procs", directory.display());
    }
    // The id of a cgroup is the inode number of its directory (Linux 5.5 and later, on 64 bit).
    Ok(metadata.ino())
}

fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Fields of a line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options
/// (Documentation/filesystems/proc.rst, 3.5). Of several mounts that of the whole hierarchy with the shortest path.
fn find_root(mountinfo: &str) -> Option<PathBuf> {
    let mounts = mountinfo.lines().filter_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let mut fields = place.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        (kind.starts_with("cgroup2 ") && root == "/").then(|| unescape(at))
    });
    mounts.min_by_key(|path| path.len()).map(PathBuf::from)
}

/// The kernel writes space, tab, line feed and backslash as `\040` and the like.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_in_hybrid_and_unified_mounts() {
        let hybrid = "25 30 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n\
            27 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(find_root(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let several = "40 30 0:24 /docker/x /sys/fs/cg rw - cgroup2 none rw\n\
            41 30 0:24 / /mnt/with\\040space/cgroup rw - cgroup2 none rw\n\
            26 25 0:24 / /sys/fs/cgroup rw shared:5 master:1 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_root(several), Some("/sys/fs/cgroup".into()));
        assert_eq!(find_root("41 30 0:24 / /a\\040b rw - cgroup2 none rw\n"), Some("/a b".into()));
        assert_eq!(find_root("25 30 0:23 / / rw - ext4 /dev/sda rw\n"), None);
    }

    #[test]
    fn a_name_is_below_the_mount() {
        assert_eq!(below(Path::new("/cg"), "/a/b"), PathBuf::from("/cg/a/b"));
        assert_eq!(below(Path::new("/cg"), "/"), PathBuf::from("/cg/"));
    }
}
