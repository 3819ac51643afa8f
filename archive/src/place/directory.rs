//! A directory with a snapshot. All access is relative to the open directory and follows no symbolic link
//! within it, so nothing that is exchanged meanwhile leads elsewhere. Blocking.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use bytes::Bytes;
use rustix::fs::{self, AtFlags, CWD, Dir, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::secure::{error, lock, make, protect};
use super::{Existing, Listing};
use crate::error::Error;
use crate::location::Location;
use crate::name::{FileName, PARTS};

/// Files belong to the agent alone.
pub(super) const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
pub(super) const DIRECTORY_MODE: u32 = 0o700;
pub(super) const LOCK: &str = ".lock";
/// An unfinished file is called `.NAME.tmp`.
const UNFINISHED: (&str, &str) = (".", ".tmp");
const NO_FOLLOW: AtFlags = AtFlags::SYMLINK_NOFOLLOW;

/// Why a place is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Creates the directory; excludes everyone else.
    Write,
    /// Excludes writers, where the place can be locked at all: not on read-only media.
    Read,
    /// Excludes everyone else.
    Delete,
}

/// An open directory and its lock.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    root: OwnedFd,
    lock: Option<OwnedFd>,
}

/// A file that is being written under a temporary name.
#[derive(Debug)]
pub(super) struct Unfinished {
    folder: OwnedFd,
    pub(super) file: File,
    name: FileName,
}

impl Directory {
    pub(super) fn open(path: PathBuf, purpose: Purpose) -> Result<Self, Error> {
        let place = Location::Directory(path.clone());
        let failed = |doing| {
            let place = place.clone();
            move |e: io::Error| error(&place, doing, String::new(), e)
        };
        if purpose == Purpose::Write {
            make(&path).map_err(failed("create the directory"))?;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match fs::openat(CWD, &path, flags, Mode::empty()) {
            Ok(root) => root,
            Err(Errno::NOENT) => return Err(Error::Incomplete { place }),
            Err(e) => return Err(failed("open the directory")(e.into())),
        };
        if purpose == Purpose::Write {
            protect(&root, &place)?;
        }
        let lock = lock(&root, purpose).map_err(|e| match e {
            Errno::WOULDBLOCK => Error::Locked {
                place: place.clone(),
            },
            e => failed("lock the directory")(e.into()),
        })?;
        let directory = Self { path, root, lock };
        if purpose == Purpose::Write {
            let made = directory.make_parts();
            made.map_err(failed("create the folder parts"))?;
        }
        Ok(directory)
    }

    /// Lets others read; writers stay excluded.
    pub(super) fn share(&self) -> io::Result<()> {
        match &self.lock {
            Some(lock) => Ok(fs::flock(lock, FlockOperation::NonBlockingLockShared)?),
            None => Ok(()),
        }
    }

    fn make_parts(&self) -> io::Result<()> {
        match fs::mkdirat(&self.root, PARTS, Mode::from_raw_mode(DIRECTORY_MODE)) {
            Err(Errno::EXIST) => Ok(()),
            made => Ok(made.and_then(|()| fs::fsync(&self.root))?),
        }
    }

    fn folder(&self, name: FileName) -> io::Result<OwnedFd> {
        match name.folder() {
            None => Ok(self.root.try_clone()?),
            Some(folder) => self.open_folder(folder),
        }
    }

    fn open_folder(&self, folder: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(fs::openat(&self.root, folder, flags, Mode::empty())?)
    }

    fn open_file(&self, name: FileName) -> io::Result<File> {
        // Opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = fs::openat(self.folder(name)?, name.base(), flags, Mode::empty())?;
        if FileType::from_raw_mode(fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(Errno::LOOP.into());
        }
        Ok(file.into())
    }

    pub(super) fn length(&self, name: FileName) -> io::Result<Option<u64>> {
        match self.open_file(name) {
            Ok(file) => Ok(Some(file.metadata()?.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    pub(super) fn read_range(&self, name: FileName, range: Range<u64>) -> io::Result<Bytes> {
        let file = self.open_file(name)?;
        let wanted = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; wanted];
        let mut got = 0;
        while got < wanted {
            match file.read_at(&mut bytes[got..], range.start + got as u64) {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        bytes.truncate(got);
        Ok(bytes.into())
    }

    pub(super) fn begin(&self, name: FileName) -> io::Result<Unfinished> {
        let folder = self.folder(name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = fs::openat(&folder, temporary(name), flags, FILE_MODE)?.into();
        Ok(Unfinished { folder, file, name })
    }

    pub(super) fn write(&self, name: FileName, bytes: &[u8], existing: Existing) -> io::Result<()> {
        let mut unfinished = self.begin(name)?;
        let written = unfinished.file.write_all(bytes);
        let written = written.and_then(|()| match existing {
            // The lock excludes another writer, so nothing appears in between.
            Existing::Refuse if self.length(name)?.is_some() => {
                Err(io::ErrorKind::AlreadyExists.into())
            }
            Existing::Refuse | Existing::Replace => unfinished.finish(),
        });
        if written.is_err() {
            unfinished.remove();
        }
        written
    }

    pub(super) fn remove(&self, names: &[FileName]) -> Result<(), (FileName, io::Error)> {
        let mut folders = [None, None];
        for &name in names {
            let at = |e| (name, e);
            let slot = usize::from(name.folder().is_some());
            let folder = match &folders[slot] {
                Some(folder) => folder,
                None => match self.folder(name) {
                    Ok(folder) => folders[slot].insert(folder),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                    Err(e) => return Err(at(e)),
                },
            };
            match fs::unlinkat(folder, name.base(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(at(e.into())),
            }
        }
        let last = names.last().copied().unwrap_or(FileName::Claim);
        for folder in folders.iter().flatten() {
            fs::fsync(folder).map_err(|e| (last, e.into()))?;
        }
        Ok(())
    }

    pub(super) fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let mut add = |folder: &OwnedFd, name: &str, path: String, kind| {
            match (FileName::parse(&path), kind) {
                (Some(file), FileType::RegularFile) => match fs::statat(folder, name, NO_FOLLOW) {
                    Ok(stat) => listing
                        .files
                        .push((file, u64::try_from(stat.st_size).unwrap_or(0))),
                    Err(Errno::NOENT) => {}
                    Err(e) => return Err(e.into()),
                },
                _ if is_unfinished(name) || matches!(&*path, LOCK | PARTS) => {}
                _ => listing.stranger(path),
            }
            Ok(())
        };
        for_each(&self.root, |folder, name, kind| {
            add(folder, name, name.to_owned(), kind)
        })?;
        let parts = match self.open_folder(PARTS) {
            Ok(parts) => parts,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(e) => return Err(e),
        };
        for_each(&parts, |folder, name, kind| {
            add(folder, name, format!("{PARTS}/{name}"), kind)
        })?;
        Ok(listing)
    }

    pub(super) fn remove_unfinished(&self) -> io::Result<()> {
        let folders = [Ok(self.root.try_clone()?), self.open_folder(PARTS)];
        for folder in folders {
            let folder = match folder {
                Ok(folder) => folder,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            };
            for_each(&folder, |folder, name, kind| {
                if is_unfinished(name) && kind == FileType::RegularFile {
                    fs::unlinkat(folder, name, AtFlags::empty())?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Folders that hold strangers' files stay, and so does one that is a mount.
    pub(super) fn remove_folders(&self) -> io::Result<()> {
        match fs::unlinkat(&self.root, PARTS, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            Err(e) => return Err(e.into()),
        }
        match fs::unlinkat(&self.root, LOCK, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        fs::fsync(&self.root)?;
        let _ = std::fs::remove_dir(&self.path);
        Ok(())
    }
}

impl Unfinished {
    /// Makes the file durable and gives it its name.
    pub(super) fn finish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::renameat(
            &self.folder,
            temporary(self.name),
            &self.folder,
            self.name.base(),
        )?;
        Ok(fs::fsync(&self.folder)?)
    }

    /// Best effort: the next writer removes what is left.
    pub(super) fn remove(&self) {
        let _ = fs::unlinkat(&self.folder, temporary(self.name), AtFlags::empty());
    }
}

fn temporary(name: FileName) -> String {
    format!("{}{}{}", UNFINISHED.0, name.base(), UNFINISHED.1)
}

/// Whether a name is a temporary one of ours.
fn is_unfinished(name: &str) -> bool {
    let base = name
        .strip_prefix(UNFINISHED.0)
        .and_then(|name| name.strip_suffix(UNFINISHED.1));
    base.is_some_and(|base| {
        FileName::parse(base).is_some() || FileName::parse(&format!("{PARTS}/{base}")).is_some()
    })
}

fn for_each(
    folder: &OwnedFd,
    mut each: impl FnMut(&OwnedFd, &str, FileType) -> io::Result<()>,
) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        // A name that is not UTF-8 is a stranger's, also in this form.
        let name = entry.file_name().to_string_lossy();
        if matches!(&*name, "." | "..") {
            continue;
        }
        let kind = match entry.file_type() {
            // Some file systems do not say.
            FileType::Unknown => {
                let stat = fs::statat(folder, entry.file_name(), NO_FOLLOW)?;
                FileType::from_raw_mode(stat.st_mode)
            }
            kind => kind,
        };
        each(folder, &name, kind)?;
    }
    Ok(())
}
