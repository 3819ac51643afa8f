//! The directory of kept parts: made when the first one comes, for its owner alone, locked by this process,
//! and removed with it. What a killed process left is removed when the next one starts. Blocking.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{self, AtFlags, CWD, FlockOperation, Mode, OFlags};
use steep_protocol::ByteCount;
use tempfile::TempDir;
use tracing::warn;

use crate::mutex::lock;

const PREFIX: &str = "steep-agent-kept-";

/// Files belong to the agent alone.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
const DIRECTORY_MODE: u32 = 0o700;

/// Another process that starts may take a directory that is not locked yet for a leftover.
const ATTEMPTS: u32 = 5;

/// By default, at most this share of what is free…
const SHARE: u64 = 10;

/// …and no more than this: what is exchanged is used soon.
const DEFAULT_MAX: ByteCount = ByteCount(32 * 1024 * 1024 * 1024);

#[derive(Debug)]
pub(super) struct Place {
    parent: PathBuf,
    open: Mutex<State>,
}

#[derive(Debug)]
enum State {
    New,
    Open(Directory),
    Closed,
}

#[derive(Debug)]
struct Directory {
    /// Removes it.
    _path: TempDir,
    /// Holds the lock.
    root: OwnedFd,
}

/// How much is kept by default within `parent`, which need not exist yet.
pub(crate) fn default_size(parent: &Path) -> ByteCount {
    let there = parent.ancestors().find(|path| path.is_dir());
    let stat = there.and_then(|path| fs::statvfs(path).ok());
    let free = stat.map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    ByteCount(free / SHARE).min(DEFAULT_MAX)
}

impl Place {
    /// Removes what earlier processes left in `parent`.
    pub(super) fn new(parent: PathBuf) -> Self {
        remove_leftovers(&parent);
        Self {
            parent,
            open: Mutex::new(State::New),
        }
    }

    /// Creates a file, which must not exist.
    pub(super) fn create(&self, file: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        {
            let mut open = lock(&self.open);
            if matches!(*open, State::New) {
                *open = State::Open(make(&self.parent)?);
            }
        }
        let file = fs::openat(self.root()?, file, flags | OFlags::CLOEXEC, FILE_MODE)?;
        Ok(file.into())
    }

    pub(super) fn open(&self, file: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(self.root()?, file, flags, Mode::empty())?.into())
    }

    /// Files that are gone already are no error. One that cannot be removed goes with the directory.
    pub(super) fn remove(&self, files: &[String]) {
        if files.is_empty() {
            return;
        }
        let Ok(root) = self.root() else { return };
        for file in files {
            // A reader that has it open reads on.
            let _ = fs::unlinkat(&root, file.as_str(), AtFlags::empty());
        }
    }

    pub(super) fn close(&self) {
        *lock(&self.open) = State::Closed;
    }

    fn root(&self) -> io::Result<OwnedFd> {
        match &*lock(&self.open) {
            State::Open(directory) => directory.root.try_clone(),
            State::New => Err(io::ErrorKind::NotFound.into()),
            State::Closed => Err(io::Error::other("the agent is being stopped")),
        }
    }
}

/// A new directory with an unpredictable name, locked.
fn make(parent: &Path) -> io::Result<Directory> {
    let mut builder = std::fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(parent)?;
    for _ in 0..ATTEMPTS {
        let path = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(Permissions::from_mode(DIRECTORY_MODE))
            .tempdir_in(parent)?;
        if let Some(root) = lock_directory(path.path())? {
            return Ok(Directory { _path: path, root });
        }
    }
    Err(io::Error::other("the directory is removed by others"))
}

/// `None` where another process has it, or has removed it.
fn lock_directory(path: &Path) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    match fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((fs::fstat(&root)?.st_nlink > 0).then_some(root)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes directories of ours that no process has locked.
fn remove_leftovers(parent: &Path) {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return;
    };
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let named = entry.file_name().to_string_lossy().starts_with(PREFIX);
        // Of the link, if it is one.
        let ours = |stat: std::fs::Metadata| stat.is_dir() && stat.uid() == own;
        if !named || !entry.metadata().is_ok_and(ours) {
            continue;
        }
        let path = entry.path();
        if let Ok(Some(_locked)) = lock_directory(&path)
            && let Err(error) = std::fs::remove_dir_all(&path)
        {
            warn!(%error, path = %path.display(), "an earlier process left parts that cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;

    use super::*;

    fn entries(parent: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(parent).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn files_are_private_and_gone_with_the_place() {
        let parent = tempfile::tempdir().unwrap();
        let below = parent.path().join("data");
        let place = Place::new(below.clone());
        assert!(!below.exists(), "made when it is needed");
        place.create("x").unwrap().write_all(b"rows").unwrap();
        assert!(place.create("x").is_err());
        let mut read = String::new();
        place.open("x").unwrap().read_to_string(&mut read).unwrap();
        assert_eq!(read, "rows");
        let directory = entries(&below).pop().unwrap();
        let mode = |path: &Path| path.metadata().unwrap().mode() & 0o777;
        assert_eq!(
            (mode(&directory), mode(&directory.join("x"))),
            (0o700, 0o600)
        );
        symlink("/etc/hostname", directory.join("y")).unwrap();
        assert!(place.open("y").is_err() && place.create("y").is_err());
        place.close();
        assert!(entries(&below).is_empty());
        assert!(place.create("z").is_err());
    }

    #[test]
    fn leftovers_are_removed_and_others_parts_are_not() {
        let parent = tempfile::tempdir().unwrap();
        let living = Place::new(parent.path().to_owned());
        living.create("x").unwrap();
        let left = parent.path().join(format!("{PREFIX}dead"));
        std::fs::create_dir(&left).unwrap();
        std::fs::write(left.join("x"), "rows").unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let link = parent.path().join(format!("{PREFIX}link"));
        symlink(elsewhere.path(), &link).unwrap();
        let _next = Place::new(parent.path().to_owned());
        assert!(!left.exists() && link.exists());
        assert!(living.open("x").is_ok());
    }

    #[test]
    fn the_default_is_a_share_of_what_is_free() {
        let parent = tempfile::tempdir().unwrap();
        let size = default_size(&parent.path().join("not/there"));
        assert!(size > ByteCount(0) && size <= DEFAULT_MAX);
    }
}
