//! A place with files: a directory or a prefix of a bucket. Knows nothing of their content.
//!
//! A directory's system calls run on the blocking pool, never on the caller's event loop.

mod answer;
mod connect;
mod directory;
mod http;
mod object;
mod read;
mod secure;
mod uploads;
mod write;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::blocking::blocking;
use crate::error::{Error, Problem, ProblemKind};
use crate::location::Location;
use crate::name::FileName;

use directory::Directory;
use object::Objects;

pub(crate) use directory::Purpose;
pub(crate) use read::FileReader;
pub(crate) use write::{Digests, FileDigests, FileWriter, Pieces};

/// Names of strangers' files that are kept; more are only counted.
const STRANGERS_MAX: usize = 100;

/// A place. Clones share its lock.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    location: Location,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Directory(Arc<Directory>),
    Objects(Arc<Objects>),
}

/// Whether a file may take another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Refuse,
    Replace,
}

/// The files in a place.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Ours, with their lengths in bytes.
    pub(crate) files: Vec<(FileName, u64)>,
    /// Some of those that are not.
    pub(crate) strangers: Vec<String>,
    /// How many are not.
    pub(crate) strangers_count: u64,
}

impl Listing {
    fn add(&mut self, path: String, length: u64) {
        if let Some(name) = FileName::parse(&path) {
            self.files.push((name, length));
        } else {
            self.stranger(path);
        }
    }

    fn stranger(&mut self, path: String) {
        self.strangers_count += 1;
        if self.strangers.len() < STRANGERS_MAX {
            self.strangers.push(path);
        }
    }
}

impl Place {
    /// Opens a place. With [`Purpose::Write`], a directory is created where there is none.
    pub(crate) async fn open(location: &Location, purpose: Purpose) -> Result<Self, Error> {
        let kind = match location {
            Location::Directory(path) => {
                let path = path.clone();
                let opened = blocking(move || Directory::open(path, purpose)).await;
                Kind::Directory(Arc::new(opened?))
            }
            Location::Bucket { prefix, .. } => {
                let connected = connect::connect(location)?;
                Kind::Objects(Arc::new(Objects::new(connected, prefix)))
            }
        };
        Ok(Self {
            location: location.clone(),
            kind,
        })
    }

    #[cfg(test)]
    pub(crate) fn in_store(store: Arc<dyn object_store::ObjectStore>, prefix: &str) -> Self {
        let connected = connect::Connected {
            store,
            uploads: None,
        };
        Self {
            location: Location::parse(&format!("s3://memory/{prefix}")).unwrap(),
            kind: Kind::Objects(Arc::new(Objects::new(connected, prefix))),
        }
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// How files are written here.
    pub(crate) fn pieces(&self) -> Pieces {
        match &self.kind {
            Kind::Directory(_) => Pieces::DIRECTORY,
            Kind::Objects(_) => Pieces::OBJECTS,
        }
    }

    /// A file's length in bytes, if it exists.
    pub(crate) async fn length(&self, name: FileName) -> Result<Option<u64>, Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let found = blocking(move || directory.length(name)).await;
                found.map_err(|e| self.io("look at", name, e))
            }
            Kind::Objects(objects) => {
                let found = objects.length(name).await;
                found.map_err(|e| self.store("look at", name, e))
            }
        }
    }

    /// Bytes of a file. Fewer than asked for if it ends before.
    pub(crate) async fn read_range(
        &self,
        name: FileName,
        range: Range<u64>,
    ) -> Result<Bytes, Error> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let read = blocking(move || directory.read_range(name, range)).await;
                read.map_err(|e| self.io("read", name, e))
            }
            Kind::Objects(objects) => {
                let read = objects.read_range(name, range).await;
                read.map_err(|e| self.store("read", name, e))
            }
        }
    }

    /// A whole file of at most `limit` bytes, if it exists.
    pub(crate) async fn read(&self, name: FileName, limit: u64) -> Result<Option<Bytes>, Error> {
        let Some(length) = self.length(name).await? else {
            return Ok(None);
        };
        if length > limit {
            let why = format!("it has {length} bytes; at most {limit} are allowed");
            return Err(Problem::damaged(name, why).at(&self.location));
        }
        let bytes = self.read_range(name, 0..length).await?;
        if (bytes.len() as u64) < length {
            let kind = ProblemKind::Truncated {
                length: bytes.len() as u64,
                expected: length,
            };
            return Err(Problem::new(name, kind).at(&self.location));
        }
        Ok(Some(bytes))
    }

    /// Writes a whole file: complete and durable when it appears, or not at all.
    pub(crate) async fn write(
        &self,
        name: FileName,
        bytes: Bytes,
        existing: Existing,
    ) -> Result<(), Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let written = blocking(move || directory.write(name, &bytes, existing)).await;
                written.map_err(|e| self.io("write", name, e))
            }
            Kind::Objects(objects) => {
                let written = objects.write(name, bytes, existing).await;
                written.map_err(|e| self.store("write", name, e))
            }
        }
    }

    /// Begins a file of unknown length.
    pub(crate) async fn begin(&self, name: FileName) -> Result<FileWriter, Error> {
        FileWriter::begin(self.clone(), name).await
    }

    /// Removes files; those that do not exist are no error.
    pub(crate) async fn remove(&self, names: Vec<FileName>) -> Result<(), Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let removed = blocking(move || directory.remove(&names)).await;
                removed.map_err(|(name, e)| self.io("delete", name, e))
            }
            Kind::Objects(objects) => {
                let removed = objects.remove(names).await;
                removed.map_err(|(name, e)| self.store("delete", name, e))
            }
        }
    }

    /// Every file here.
    pub(crate) async fn list(&self) -> Result<Listing, Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let listed = blocking(move || directory.list()).await;
                listed.map_err(|e| self.io("list the files", "", e))
            }
            Kind::Objects(objects) => {
                let listed = objects.list().await;
                listed.map_err(|e| self.store("list the objects", "", e))
            }
        }
    }

    /// Lets others read what was written here.
    pub(crate) fn share(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let shared = directory.share();
                shared.map_err(|e| self.io("unlock the directory", "", e))
            }
            Kind::Objects(_) => Ok(()),
        }
    }

    /// Removes unfinished files and uploads of an earlier process, or of this one's writers that are dropped.
    /// A directory's lock makes this safe. A bucket has none: another process that still writes the same
    /// snapshot there fails.
    pub(crate) async fn remove_unfinished(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let removed = blocking(move || directory.remove_unfinished()).await;
                removed.map_err(|e| self.io("delete unfinished files", "", e))
            }
            Kind::Objects(objects) => {
                let removed = objects.remove_unfinished().await;
                removed.map_err(|e| self.store("abort unfinished uploads", "", e))
            }
        }
    }

    /// Removes the emptied folders.
    pub(crate) async fn remove_folders(&self) -> Result<(), Error> {
        match &self.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let removed = blocking(move || directory.remove_folders()).await;
                removed.map_err(|e| self.io("delete the folders", "", e))
            }
            Kind::Objects(_) => Ok(()),
        }
    }

    /// The error of a file that could not be encrypted, which there is no reason for.
    pub(crate) fn encrypting(&self, name: FileName, source: std::io::Error) -> Error {
        self.io("encrypt", name, source)
    }

    /// The error of reading where the task that did it broke.
    pub(crate) fn broken(&self, name: FileName, error: tokio::task::JoinError) -> Error {
        self.io("read", name, std::io::Error::other(error))
    }

    fn io(&self, doing: &'static str, file: impl ToString, source: std::io::Error) -> Error {
        secure::error(&self.location, doing, file.to_string(), source)
    }

    fn store(
        &self,
        doing: &'static str,
        file: impl ToString,
        source: object_store::Error,
    ) -> Error {
        answer::error(&self.location, doing, file.to_string(), &source)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The error of a write for which there is no space.
    pub(crate) fn full(location: &Location) -> Error {
        let source = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        secure::error(location, "write", "parts/0000001.copy".to_owned(), source)
    }
}
