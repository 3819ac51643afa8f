//! Why the store cannot be used: what, where, why, and what to do.

use std::path::PathBuf;

use rusqlite::ffi::{SQLITE_IOERR_SHMSIZE, SQLITE_IOERR_WRITE};

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory or a file cannot be created, opened or locked.
    #[error("cannot {what} {}: {source}", path.display())]
    File {
        /// What failed.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The directory or a file in it is not the coordinator's alone.
    #[error("{} is no place for the store: {why}", path.display())]
    Place {
        /// The directory or file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Another coordinator uses the directory.
    #[error(
        "another coordinator is using {}: stop it, or give this one its own --data-dir",
        path.display()
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The store was written by a newer version.
    #[error(
        "the store {} has schema version {found}, and this build knows up to {known}. It was not changed: \
         start the steep-coordinator that wrote it, or a newer one",
        path.display()
    )]
    TooNew {
        /// The file.
        path: PathBuf,
        /// The store's version.
        found: i64,
        /// The newest version that this build knows.
        known: i64,
    },
    /// The file is damaged, or no store.
    #[error(
        "the store {} cannot be used: {why}. It was not changed: put back a copy of the whole directory, or \
         move this file and those beside it elsewhere. A coordinator that starts without them learns from \
         its agents which nodes follow whom and what jobs have left on servers, but not what it did before",
        path.display()
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// SQLite cannot open or prepare the file.
    #[error("the store {} cannot be opened: {source}", path.display())]
    Unopened {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rusqlite::Error,
    },
    /// A record cannot be read.
    #[error("the store's {what} cannot be read: {reason}")]
    Corrupt {
        /// The record.
        what: String,
        /// Why.
        reason: String,
    },
    /// SQLite failed, most often because of a full disk.
    #[error("the store failed: {0}")]
    Database(#[from] rusqlite::Error),
}

impl StoreError {
    /// Whether the disk, a quota or a limit of file sizes leaves no room, so that the same writes succeed
    /// once there is some. A failed `fsync` is none of these: after it, another may succeed without having
    /// written anything.
    #[must_use]
    pub fn is_full(&self) -> bool {
        let Self::Database(error) = self else {
            return false;
        };
        let code = error.sqlite_error().map(|error| error.extended_code);
        error.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            || matches!(code, Some(SQLITE_IOERR_WRITE | SQLITE_IOERR_SHMSIZE))
    }
}
