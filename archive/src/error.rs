//! What can go wrong with a stored snapshot.

use std::fmt;
use std::io;

use steep_protocol::encryption::Recipients;
use steep_protocol::{PartNo, SnapshotId};

use crate::chunk::PackError;
use crate::keys::KeyProblem;
use crate::location::{InvalidLocation, Location};

/// A failed operation. Names the file, its place and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The location is not valid.
    #[error(transparent)]
    Location(#[from] InvalidLocation),
    /// The file system failed.
    #[error("cannot {doing}{} in {place}: {source}", named(.file))]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file, relative to the place.
        file: String,
        /// The snapshot's place.
        place: Location,
        /// The system's error.
        source: io::Error,
    },
    /// No space or quota is left.
    #[error(
        "cannot write {file}: no space is left in {place}, or no inode; free some there or use another place"
    )]
    Full {
        /// The file, relative to the place.
        file: String,
        /// The snapshot's place.
        place: Location,
    },
    /// The object store failed or refused.
    #[error("cannot {doing}{} in {place}: {why}", named(.file))]
    Store {
        /// What was being done.
        doing: &'static str,
        /// The object, relative to the place.
        file: String,
        /// The snapshot's place.
        place: Location,
        /// Whether it may succeed later.
        passing: Passing,
        /// What the store said, without what its answer quotes of the request.
        why: String,
    },
    /// The store cannot be set up: a missing credential or setting.
    #[error("cannot use {place}: {why}")]
    Setup {
        /// The snapshot's place.
        place: Location,
        /// The cause.
        why: String,
    },
    /// Another process writes, reads or deletes there.
    #[error("{place} is in use by another process; wait for it or stop it")]
    Locked {
        /// The snapshot's place.
        place: Location,
    },
    /// The directory does not protect what it holds.
    #[error("{place} cannot hold a snapshot: {why}")]
    Unsafe {
        /// The snapshot's place.
        place: Location,
        /// The cause and what to do.
        why: String,
    },
    /// A complete snapshot is there.
    #[error("{place} holds a complete snapshot already{}; delete it or use another place", of(*.found))]
    Complete {
        /// The snapshot's place.
        place: Location,
        /// Its id, if its manifest can be read.
        found: Option<SnapshotId>,
    },
    /// Pieces of another snapshot, or of this one begun differently, are there.
    #[error("{place} holds pieces of another snapshot{}{why}; delete them or use another place", of(*.found))]
    Occupied {
        /// The snapshot's place.
        place: Location,
        /// The id, if known.
        found: Option<SnapshotId>,
        /// How they differ; may be empty.
        why: String,
    },
    /// There is no manifest.
    #[error("{place} holds no complete snapshot: there is no manifest.json")]
    Incomplete {
        /// The snapshot's place.
        place: Location,
    },
    /// A file is not what it should be.
    #[error("{place}: {problem}")]
    Problem {
        /// The snapshot's place.
        place: Location,
        /// The file and what is wrong with it.
        problem: Problem,
    },
    /// It is encrypted, and there is no key for it.
    #[error("the files in {place} are encrypted to {recipients}, and {why}")]
    Key {
        /// The snapshot's place.
        place: Location,
        /// Who can read it; public.
        recipients: Recipients,
        /// What there is instead.
        why: Box<KeyProblem>,
    },
    /// The manifest has no such part.
    #[error("the snapshot in {place} has no part {no}")]
    NoSuchPart {
        /// The snapshot's place.
        place: Location,
        /// The part.
        no: PartNo,
    },
    /// The caller broke the order of writing, or its input is over a limit.
    #[error("the snapshot in {place} cannot be written: {why}")]
    Misuse {
        /// The snapshot's place.
        place: Location,
        /// The rule.
        why: String,
    },
    /// A chunk could not be packed.
    #[error(transparent)]
    Pack(#[from] PackError),
}

/// A file within a sentence; none where all of the place is meant.
fn named(file: &str) -> String {
    match file {
        "" => String::new(),
        file => format!(" {file}"),
    }
}

fn of(found: Option<SnapshotId>) -> String {
    found.map_or_else(String::new, |id| format!(" ({id})"))
}

/// Whether an object store's error may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passing {
    /// Throttling, a timeout, a broken connection, the store's own fault.
    MayPass,
    /// A refusal, a missing object or a wrong setting.
    Stays,
}

impl Error {
    /// Whether trying again later can help, without anyone doing anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Store { passing, .. } => *passing == Passing::MayPass,
            Self::Locked { .. } => true,
            Self::Io { source, .. } => matches!(
                source.kind(),
                io::ErrorKind::TimedOut
                    | io::ErrorKind::Interrupted
                    | io::ErrorKind::StaleNetworkFileHandle
            ),
            _ => false,
        }
    }

    /// Whether what was stored is not there any more, or not what was written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Problem { .. } | Self::Incomplete { .. } | Self::NoSuchPart { .. } => true,
            Self::Io { source, .. } => source.kind() == io::ErrorKind::NotFound,
            _ => false,
        }
    }

    /// Whether somebody has to make room first.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }
}

/// A file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its name within the snapshot.
    pub file: String,
    /// What is wrong.
    pub kind: ProblemKind,
}

/// What is wrong with a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProblemKind {
    /// It does not exist.
    Missing,
    /// It is shorter than the manifest says.
    Truncated {
        /// Its length in bytes.
        length: u64,
        /// The length in the manifest.
        expected: u64,
    },
    /// Its content was changed.
    Damaged(String),
    /// It is another file of this snapshot.
    Swapped {
        /// The file whose content it has.
        with: String,
    },
    /// It is well-formed but not part of this snapshot.
    Foreign(String),
    /// It is a symbolic link, a directory or a device.
    NotAFile,
    /// It cannot be read.
    Unreadable(String),
}

impl Problem {
    pub(crate) fn new(file: impl fmt::Display, kind: ProblemKind) -> Self {
        Self {
            file: file.to_string(),
            kind,
        }
    }

    pub(crate) fn damaged(file: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::new(file, ProblemKind::Damaged(why.into()))
    }

    pub(crate) fn at(self, place: &Location) -> Error {
        Error::Problem {
            place: place.clone(),
            problem: self,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = &self.file;
        match &self.kind {
            ProblemKind::Missing => write!(f, "{file} is missing"),
            ProblemKind::Truncated { length, expected } => {
                write!(
                    f,
                    "{file} is truncated: {length} of {expected} bytes are there"
                )
            }
            ProblemKind::Damaged(why) => write!(f, "{file} is damaged: {why}"),
            ProblemKind::Swapped { with } => {
                write!(f, "{file} is swapped: its content is that of {with}")
            }
            ProblemKind::Foreign(why) => write!(f, "{file} is from another snapshot: {why}"),
            ProblemKind::NotAFile => write!(f, "{file} is not a regular file"),
            ProblemKind::Unreadable(why) => write!(f, "{file} cannot be read: {why}"),
        }
    }
}
