//! What others may change: files and directories that the agent trusts must be out of their reach. And files that may
//! have been put in place of others.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{getegid, geteuid};

/// Permission to remove entries of others from a directory is not given with that to write it.
const STICKY: u32 = 0o1000;

/// Who besides root and this process may write it, in words.
fn writer(metadata: &Metadata) -> Option<String> {
    if !is_ours(metadata) {
        return Some(owner(metadata));
    }
    let (gid, mode) = (metadata.gid(), metadata.mode());
    if mode & 0o020 != 0 && gid != 0 && gid != getegid().as_raw() {
        return Some(format!("its group {gid} may write it"));
    }
    (mode & 0o002 != 0).then(|| "everybody may write it".to_owned())
}

/// Fails for a file or directory that others may write or, by a directory above it, put another one in place of.
///
/// # Errors
/// It says what others may write. Or there is no such file.
pub fn check(path: &Path) -> Result<()> {
    let real = resolved(path)?;
    ensure_safe(&real, writer)?;
    real.parent().map_or(Ok(()), check_place)
}

/// Fails for a directory in which others may take away what this process or root has put there. In one that is shared
/// as /tmp is, they may not.
///
/// # Errors
/// As [`check`].
pub fn check_place(directory: &Path) -> Result<()> {
    let remover =
        |metadata: &Metadata| if metadata.mode() & STICKY != 0 && is_ours(metadata) { None } else { writer(metadata) };
    resolved(directory)?.ancestors().try_for_each(|place| ensure_safe(place, remover))
}

/// Whether everybody may put files into a directory.
pub fn is_shared(directory: &Path) -> bool {
    fs::metadata(directory).is_ok_and(|metadata| metadata.mode() & 0o002 != 0)
}

/// The path without symbolic links. In a shared directory anybody may have put one: those of others are not followed.
fn resolved(path: &Path) -> Result<PathBuf> {
    let looking = || format!("looking for {}", path.display());
    for place in std::path::absolute(path).with_context(looking)?.ancestors() {
        let metadata = fs::symlink_metadata(place).with_context(looking)?;
        ensure!(is_ours(&metadata), "{} is not safe from others: {}", place.display(), owner(&metadata));
    }
    path.canonicalize().with_context(looking)
}

fn is_ours(metadata: &Metadata) -> bool {
    metadata.uid() == 0 || metadata.uid() == geteuid().as_raw()
}

fn owner(metadata: &Metadata) -> String {
    format!("it belongs to the user {}", metadata.uid())
}

fn ensure_safe(place: &Path, writer: impl Fn(&Metadata) -> Option<String>) -> Result<()> {
    let metadata = fs::symlink_metadata(place).with_context(|| format!("looking at {}", place.display()))?;
    match writer(&metadata) {
        None => Ok(()),
        Some(why) => bail!("{} is not safe from others: {why}", place.display()),
    }
}

/// Makes a directory, and those above it, with exactly this mode whatever the umask; one that is there stays as it is.
/// Returns whether it was made.
///
/// # Errors
/// It cannot be made, or others may write it.
pub fn make_directory(path: &Path, mode: u32) -> Result<bool> {
    let is_new = match fs::metadata(path) {
        Ok(metadata) => {
            ensure!(metadata.is_dir(), "{} is no directory", path.display());
            false
        }
        Err(_) => {
            let making = || format!("making {}", path.display());
            if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty() && !above.exists()) {
                make_directory(above, 0o755)?;
            }
            DirBuilder::new().mode(mode & 0o700).create(path).with_context(making)?;
            fs::set_permissions(path, Permissions::from_mode(mode)).with_context(making)?;
            true
        }
    };
    check(path)?;
    Ok(is_new)
}

/// Closes a directory to others, so that they can neither read nor lock it; unless it holds something besides `own`, and
/// with that is not the agent's alone.
///
/// # Errors
/// It cannot be listed or closed.
pub fn close(directory: &Path, own: &[&str]) -> Result<()> {
    let closing = || format!("closing {} to others", directory.display());
    for entry in fs::read_dir(directory).with_context(closing)? {
        let name = entry.with_context(closing)?.file_name();
        if own.iter().all(|own| name != *own) {
            return Ok(());
        }
    }
    // Nothing is changed where nothing is to be: the disk may take no writes.
    if fs::metadata(directory).with_context(closing)?.mode() & 0o7777 != 0o700 {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).with_context(closing)?;
    }
    Ok(())
}

/// Opens a regular file to read it. What is none, such as a pipe that nobody writes, is not waited for.
///
/// # Errors
/// It cannot be opened, or is something else.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no regular file")) }
}

/// The text of a regular file of at most so many bytes.
///
/// # Errors
/// It cannot be read, is longer, or no UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<(String, Metadata)> {
    let file = open_regular(path)?;
    let metadata = file.metadata()?;
    let mut text = String::new();
    file.take(most + 1).read_to_string(&mut text)?;
    if text.len() as u64 > most {
        return Err(io::Error::other(format!("it is longer than {most} bytes")));
    }
    Ok((text, metadata))
}

/// Tells versions of a file apart: one differs from the next when the file was written or replaced. Inode, size, and when
/// it was changed.
pub type Version = (u64, u64, i64, i64);

/// The version of a file that is there.
pub fn version(path: &Path) -> Option<Version> {
    fs::metadata(path).ok().map(|metadata| version_of(&metadata))
}

pub fn version_of(metadata: &Metadata) -> Version {
    (metadata.ino(), metadata.size(), metadata.ctime(), metadata.ctime_nsec())
}

/// Says so when everybody may read a secret.
///
/// # Errors
/// There is no such file.
pub fn warn_if_open(path: &Path, secret: &str) -> Result<()> {
    let metadata = fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    if metadata.mode() & 0o004 != 0 {
        tracing::warn!("everybody on this host may read {secret} in {}: `chmod o-r` it", path.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn what_others_may_write_is_refused_at_any_height() {
        let directory = tempfile::tempdir().unwrap();
        let inner = directory.path().join("a/b");
        assert!(make_directory(&inner, 0o700).unwrap());
        assert!(!make_directory(&inner, 0o700).unwrap());
        assert_eq!(fs::metadata(&inner).unwrap().mode() & 0o7777, 0o700);
        let file = inner.join("file");
        fs::write(&file, "").unwrap();
        set_mode(&file, 0o600);
        check(&file).unwrap();
        for (place, mode) in [(file.as_path(), 0o666), (inner.as_path(), 0o777), (inner.parent().unwrap(), 0o777)] {
            let before = fs::metadata(place).unwrap().mode();
            set_mode(place, mode);
            let refused = check(&file).unwrap_err().to_string();
            assert!(refused.contains("everybody may write it"), "{refused}");
            set_mode(place, before);
        }
        set_mode(inner.parent().unwrap(), 0o1777);
        check(&file).unwrap();
        set_mode(&inner, 0o1777);
        check(&file).unwrap();
        assert!(check(&inner).is_err(), "what is trusted itself may not be shared");
    }

    #[test]
    fn a_directory_with_files_of_others_is_not_closed() {
        let directory = tempfile::tempdir().unwrap();
        let mode = || fs::metadata(directory.path()).unwrap().mode() & 0o777;
        set_mode(directory.path(), 0o755);
        fs::write(directory.path().join("theirs"), "").unwrap();
        close(directory.path(), &["ours"]).unwrap();
        assert_eq!(mode(), 0o755);
        fs::rename(directory.path().join("theirs"), directory.path().join("ours")).unwrap();
        close(directory.path(), &["ours"]).unwrap();
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn a_pipe_in_place_of_a_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_regular(&pipe).unwrap_err().to_string().contains("no regular file"));
        let file = directory.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4).unwrap().0, "text");
        assert!(read_text(&file, 3).is_err());
    }
}
