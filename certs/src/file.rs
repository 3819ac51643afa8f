//! Certificate and key files: read with a bound, written once.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes. A chain of a few certificates has about 4 KiB.
pub(crate) const FILE_MAX: u64 = 64 * 1024;

/// Mode of private keys.
pub(crate) const KEY_MODE: u32 = 0o600;

/// Mode of certificates, which are public.
pub(crate) const CERTIFICATE_MODE: u32 = 0o644;

/// Bits a private key must not have: anything for others, writing for the group.
const KEY_FORBIDDEN: u32 = 0o027;

/// A file that cannot be read or written, and which.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("cannot {doing} {}: {source}", path.display())]
    Io {
        /// Read, create, …
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Longer than a certificate or key can be.
    #[error("{} is longer than {FILE_MAX} bytes: it is not a certificate or key file", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A directory, pipe or device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// What.
        path: PathBuf,
    },
    /// Others can read the key.
    #[error(
        "the private key {} can be read or changed by others (mode {mode:04o}): run chmod 600 on it, \
         and issue a new one if somebody may have read it", path.display()
    )]
    Exposed {
        /// The key's file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file that would be overwritten.
    #[error(
        "{} exists already and is never overwritten: move it away first, or use another directory",
        path.display()
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError::Io {
        doing,
        path,
        source,
    }
}

/// The bytes of a public file.
///
/// # Errors
/// [`FileError`] if it cannot be read or is no file of that kind.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    read_open(open(path)?, path)
}

/// The bytes of a private key's file, if nobody else can read it.
///
/// # Errors
/// [`FileError::Exposed`] if somebody can, or as [`read`].
pub fn read_key(path: &Path) -> Result<Vec<u8>, FileError> {
    let file = open(path)?;
    // The open file is asked, not the path: it cannot be exchanged in between.
    let metadata = file.metadata().map_err(io_error("read", path))?;
    let mode = metadata.mode() & 0o7777;
    if mode & KEY_FORBIDDEN != 0 {
        let path = path.to_owned();
        return Err(FileError::Exposed { path, mode });
    }
    read_open(file, path)
}

fn open(path: &Path) -> Result<File, FileError> {
    // Asked before opening, because opening a pipe waits until somebody writes to it.
    let metadata = fs::metadata(path).map_err(io_error("read", path))?;
    if metadata.is_file() {
        File::open(path).map_err(io_error("read", path))
    } else {
        let path = path.to_owned();
        Err(FileError::NotAFile { path })
    }
}

fn read_open(file: File, path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error("read", path))?;
    if bytes.len() as u64 > FILE_MAX {
        let path = path.to_owned();
        return Err(FileError::TooLong { path });
    }
    Ok(bytes)
}

/// Makes the directory, and those above it, where there is none: for its owner alone.
pub(crate) fn make_directory(path: &Path) -> Result<(), FileError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io_error("create", path))
}

/// Refuses early where one of these files is there, so that none of a set is written.
pub(crate) fn refuse_existing(paths: &[&Path]) -> Result<(), FileError> {
    for path in paths {
        // A dangling link counts: something stands there.
        if fs::symlink_metadata(path).is_ok() {
            let path = (*path).to_owned();
            return Err(FileError::Exists { path });
        }
    }
    Ok(())
}

/// Writes a new file: complete, synced and with that mode when it appears, or not at all.
pub(crate) fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), FileError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::Builder::new()
        .prefix(".steep-")
        .permissions(Permissions::from_mode(KEY_MODE))
        .tempfile_in(directory)
        .map_err(io_error("create a file in", directory))?;
    file.write_all(bytes)
        // The mode is set on the open file, past the umask, and before the name exists.
        .and_then(|()| file.as_file().set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| file.as_file().sync_all())
        .map_err(io_error("write", path))?;
    file.persist_noclobber(path)
        .map_err(|failed| match failed.error.kind() {
            io::ErrorKind::AlreadyExists => FileError::Exists {
                path: path.to_owned(),
            },
            _ => io_error("write", path)(failed.error),
        })?;
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", directory))
}

/// Writes the file of a new private key, as [`write_new`] does.
///
/// # Errors
/// [`FileError::Exists`] if a file is there, or why it cannot be written.
pub fn write_new_key(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    write_new(path, bytes, KEY_MODE)
}

/// Takes back a file that was written as part of a set which could not be completed.
pub(crate) fn take_back(path: &Path) {
    // Best effort on the way out with the error that matters.
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_file_is_written_once_with_its_mode_and_no_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_new(&path, b"one", KEY_MODE).unwrap();
        assert_eq!(mode(&path), 0o600);
        let again = write_new(&path, b"two", KEY_MODE);
        assert!(matches!(again, Err(FileError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_dangling_link_is_not_written_through() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (dir.path().join("a.pem"), dir.path().join("elsewhere"));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(refuse_existing(&[&link]).is_err());
        assert!(write_new(&link, b"x", CERTIFICATE_MODE).is_err());
        assert!(!target.exists());
    }

    #[test]
    fn a_directory_is_made_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let new = dir.path().join("a/b");
        make_directory(&new).unwrap();
        assert_eq!(mode(&new), 0o700);
        make_directory(&new).unwrap();
    }

    #[test]
    fn a_key_others_can_read_is_refused_and_one_of_a_group_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.key");
        write_new(&path, b"key", KEY_MODE).unwrap();
        for (bits, fine) in [
            (0o600, true),
            (0o400, true),
            (0o640, true),
            (0o644, false),
            (0o660, false),
            (0o601, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            let read = read_key(&path);
            assert_eq!(read.is_ok(), fine, "mode {bits:o}");
            if let Err(error) = read {
                assert!(error.to_string().contains("chmod 600"), "{error}");
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("long");
        fs::write(&path, vec![b'x'; FILE_MAX as usize + 1]).unwrap();
        assert!(matches!(read(&path), Err(FileError::TooLong { .. })));
        assert!(matches!(read(dir.path()), Err(FileError::NotAFile { .. })));
        assert!(matches!(
            read(&dir.path().join("none")),
            Err(FileError::Io { .. })
        ));
    }
}
