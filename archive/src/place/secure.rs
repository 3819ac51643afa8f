//! A directory for its owner alone: created so, checked, locked. Blocking.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{self, FlockOperation, OFlags};
use rustix::io::Errno;

use super::directory::{DIRECTORY_MODE, FILE_MODE, LOCK, Purpose};
use crate::error::{Error, Problem, ProblemKind};
use crate::location::Location;

/// Others who could write here could exchange files.
const FORBIDDEN: u32 = 0o022;

/// Creates the directory, and those above it, for its owner alone.
pub(super) fn make(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)?;
    match path.parent() {
        Some(above) => File::open(above)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn protect(root: &OwnedFd, place: &Location) -> Result<(), Error> {
    let stat = fs::fstat(root).map_err(|e| error(place, "look at", String::new(), e.into()))?;
    let refuse = |why: String| {
        let place = place.clone();
        Err(Error::Unsafe { place, why })
    };
    if stat.st_uid != rustix::process::geteuid().as_raw() {
        return refuse(
            "the directory belongs to another user; use one of the agent's user".to_owned(),
        );
    }
    if stat.st_mode & FORBIDDEN != 0 {
        let mode = stat.st_mode & 0o7777;
        return refuse(format!(
            "others can write to the directory (mode {mode:o}); run chmod 700 on it"
        ));
    }
    Ok(())
}

/// The lock ends with its process, however that ends.
pub(super) fn lock(root: &OwnedFd, purpose: Purpose) -> Result<Option<OwnedFd>, Errno> {
    let (flags, operation) = match purpose {
        Purpose::Write => (
            OFlags::RDWR | OFlags::CREATE,
            FlockOperation::NonBlockingLockExclusive,
        ),
        Purpose::Delete => (OFlags::RDONLY, FlockOperation::NonBlockingLockExclusive),
        Purpose::Read => (OFlags::RDONLY, FlockOperation::NonBlockingLockShared),
    };
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match fs::openat(root, LOCK, flags, FILE_MODE) {
        Ok(file) => file,
        Err(e) if purpose == Purpose::Write => return Err(e),
        Err(_) => return Ok(None),
    };
    match fs::flock(&file, operation) {
        // A deletion has removed the file since it was opened: another lock would not exclude this one.
        Ok(()) if fs::fstat(&file)?.st_nlink == 0 => Err(Errno::WOULDBLOCK),
        Ok(()) => Ok(Some(file)),
        Err(e @ Errno::WOULDBLOCK) => Err(e),
        Err(e) if purpose == Purpose::Write => Err(e),
        // A file system without locks.
        Err(_) => Ok(None),
    }
}

/// The error of a system call.
pub(super) fn error(
    place: &Location,
    doing: &'static str,
    file: String,
    source: io::Error,
) -> Error {
    let place = place.clone();
    let is_no_file = matches!(
        Errno::from_io_error(&source),
        Some(Errno::LOOP | Errno::NOTDIR)
    );
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { file, place },
        // Opening a symbolic link without following it, or a name below one.
        _ if is_no_file && !file.is_empty() => Problem::new(file, ProblemKind::NotAFile).at(&place),
        _ => Error::Io {
            doing,
            file,
            place,
            source,
        },
    }
}
