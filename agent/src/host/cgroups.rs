//! Where cgroups (v2) are mounted, which one a process is in, and by which number the kernel knows them.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::{fd::AsRawFd, unix::fs::MetadataExt},
    path::{Component, Path, PathBuf},
    rc::Rc,
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
    let path = name_of_process(pid).with_context(|| format!("{file} names no cgroup2: is there a process {pid}?"))?;
    Ok(below(&root()?, path))
}

/// The name of the cgroup of a process, as /proc has it; `None` when the process is gone.
pub fn name_of_process(pid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let text = String::from_utf8_lossy(&text);
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The UID of the Kubernetes pod that a cgroup belongs to, from its name: `.../pod<UID>/...` where the kubelet makes
/// cgroups itself, `...-pod<UID>.slice/...` with `_` for `-` where systemd does.
pub fn pod(cgroup: &str) -> Option<String> {
    let inside = cgroup.split('/').skip_while(|part| !part.starts_with("kubepods"));
    let uid = inside.filter_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        part.strip_prefix("pod").or_else(|| part.split_once("-pod").map(|(_, uid)| uid))
    });
    uid.map(|uid| uid.replace('_', "-")).find(|uid| !uid.is_empty())
}

/// The threads in a cgroup and below it, any of which may have namespaces of its own; and in how many cgroups they cannot
/// be listed. Cgroups that are gone do not count.
pub fn threads(cgroup: &Path) -> (Vec<u32>, usize) {
    let (mut found, mut hidden) = (Vec::new(), 0);
    for directory in within(cgroup) {
        match fs::read_to_string(directory.path.join("cgroup.threads")) {
            Ok(text) => found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok())),
            Err(error) if is_gone(&error) => {}
            Err(_) => hidden += 1,
        }
    }
    (found, hidden)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// The kernel's number of a cgroup, which `bpf_get_current_cgroup_id` gives too. `path` is a directory, or the name of
/// a cgroup as /proc/PID/cgroup has it.
///
/// # Errors
/// When there is no such cgroup.
pub fn id(path: &Path) -> Result<u64> {
    // A path that leads out of the hierarchy would tell what other files there are.
    ensure!(path.components().all(|part| part != Component::ParentDir), "{} is no cgroup: it has ..", path.display());
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

/// The id of a cgroup, and its name as /proc/PID/cgroup has it. `path` as for [`id`].
///
/// # Errors
/// When there is no such cgroup.
pub fn find(path: &Path) -> Result<(u64, String)> {
    let (id, root) = (id(path)?, root()?);
    let name = path.strip_prefix(&root).unwrap_or(path);
    Ok((id, format!("/{}", name.to_string_lossy().trim_matches('/'))))
}

/// The name of the cgroup with this id; `None` when it is gone. The search begins where process `pid` is, which was in
/// that cgroup a moment ago, and goes on through the whole hierarchy.
pub fn name_of(wanted: u64, pid: u32) -> Option<String> {
    let is_it = |name: &String| id(Path::new(name)).is_ok_and(|id| id == wanted);
    if let Some(name) = name_of_process(pid).filter(is_it) {
        return Some(name);
    }
    let root = root().ok()?;
    let is_it = |found: &FoundCgroup| fs::metadata(&found.path).is_ok_and(|metadata| metadata.ino() == wanted);
    let found = within(&root).find(is_it)?;
    Some(format!("/{}", found.path.strip_prefix(&root).ok()?.display()))
}

/// A directory that was found.
struct FoundCgroup {
    path: PathBuf,
    /// A directory above it by whose descriptor `path` begins, where its whole path is too long for the kernel.
    anchor: Option<Rc<File>>,
}

/// A cgroup and those in it, however deep they are.
fn within(cgroup: &Path) -> impl Iterator<Item = FoundCgroup> + use<> {
    // PATH_MAX is 4096, and one name has 255 at most.
    const LONG: usize = 3500;
    let mut left = vec![FoundCgroup { path: cgroup.to_owned(), anchor: None }];
    std::iter::from_fn(move || {
        let mut found = left.pop()?;
        if found.path.as_os_str().len() > LONG
            && let Ok(directory) = File::open(&found.path)
        {
            found.path = format!("/proc/self/fd/{}", directory.as_raw_fd()).into();
            found.anchor = Some(Rc::new(directory));
        }
        let below = fs::read_dir(&found.path).into_iter().flatten().flatten();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        left.extend(below.map(|entry| FoundCgroup { path: entry.path(), anchor: found.anchor.clone() }));
        Some(found)
    })
}

fn below(root: &Path, path: impl AsRef<Path>) -> PathBuf {
    let path = path.as_ref();
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The root of the cgroup2 hierarchy: of several mounts of the whole hierarchy the one with the shortest path. Fields
/// of a line: id, parent, device, root, mount point, options, optional fields, `-`, type, source, options
/// (Documentation/filesystems/proc.rst, 3.5). Read by hand: no more is needed of the file.
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
    fn threads_are_found_however_deep_their_cgroup_is() {
        let root = tempfile::tempdir().unwrap();
        let mut above = File::open(root.path()).unwrap();
        for depth in 0..30 {
            let below = format!("/proc/self/fd/{}/{}", above.as_raw_fd(), "x".repeat(232));
            fs::create_dir(&below).unwrap();
            above = File::open(below).unwrap();
            fs::write(format!("/proc/self/fd/{}/cgroup.threads", above.as_raw_fd()), format!("{depth}\n")).unwrap();
        }
        assert_eq!(threads(root.path()), ((0..30).collect(), 0));
        fs::create_dir(root.path().join("cgroup.threads")).unwrap();
        assert_eq!(threads(root.path()).1, 1, "what cannot be read is told");
    }

    #[test]
    fn no_path_leads_out_of_the_hierarchy() {
        let said = |path: &str| id(Path::new(path)).unwrap_err().to_string();
        let there = said("/../../../../../../etc/passwd");
        let missing = said("/../../../../../../etc/none");
        assert_eq!(there.replace("passwd", "none"), missing);
        assert!(there.contains("is no cgroup"), "{there}");
    }

    #[test]
    fn pods_are_known_by_their_cgroups() {
        let uid = "1b5e0c1e-9a3f-4f1c-8a51-0a4e3c9d7b11";
        for cgroup in [
            "/kubepods/burstable/pod1b5e0c1e-9a3f-4f1c-8a51-0a4e3c9d7b11/4f5d",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1b5e0c1e_9a3f_4f1c_8a51_0a4e3c9d7b11.slice/\
             cri-containerd-4f5d.scope",
            "/kubelet.slice/kubepods/pod1b5e0c1e-9a3f-4f1c-8a51-0a4e3c9d7b11",
        ] {
            assert_eq!(pod(cgroup).as_deref(), Some(uid), "{cgroup}");
        }
        for cgroup in ["/", "/system.slice/podman.service", "/user.slice/pods/pod1", "/kubepods.slice"] {
            assert_eq!(pod(cgroup), None, "{cgroup}");
        }
    }

    #[test]
    fn a_name_is_below_the_mount() {
        assert_eq!(below(Path::new("/cg"), "/a/b"), PathBuf::from("/cg/a/b"));
        assert_eq!(below(Path::new("/cg"), "/"), PathBuf::from("/cg/"));
    }
}
