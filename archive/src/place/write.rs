//! Writes one file of unknown length with constant memory, and digests it.
//!
//! Bytes are collected into pieces. Digesting and a directory's writes run on the blocking pool while the
//! next piece is collected; a bucket's pieces are uploaded at most two at a time.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use object_store::MultipartUpload;
use sha2::{Digest, Sha256};
use tokio::task::{JoinHandle, JoinSet};

use super::directory::Unfinished;
use super::object::Objects;
use super::{Existing, Kind, Place};
use crate::blocking::blocking;
use crate::error::Error;
use crate::manifest::Sum;
use crate::name::FileName;

/// How a file is cut while it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pieces {
    /// Bytes of one.
    pub(crate) bytes: usize,
    /// Pieces in memory at once.
    pub(crate) held: usize,
}

impl Pieces {
    /// Large enough to make a hand-over to the blocking pool negligible.
    pub(crate) const DIRECTORY: Self = Self {
        bytes: 1024 * 1024,
        held: 2,
    };
    /// Stores allow 10,000 pieces of equal size, of at least 5 MiB: a file has at most 80 GB.
    pub(crate) const OBJECTS: Self = Self {
        bytes: 8 * 1024 * 1024,
        held: 1 + UPLOADS,
    };
}

/// Pieces of one file on their way.
const UPLOADS: usize = 2;

/// Stores' limit.
const PIECES_MAX: u32 = 10_000;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileDigests {
    pub(crate) bytes: u64,
    pub(crate) sha256: Sum,
    pub(crate) blake3: Sum,
}

/// Digests of a file so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Digests {
    bytes: u64,
    sha256: Sha256,
    blake3: blake3::Hasher,
}

impl Digests {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
        self.blake3.update(bytes);
    }

    pub(crate) fn finish(self) -> FileDigests {
        FileDigests {
            bytes: self.bytes,
            sha256: Sum(self.sha256.finalize().into()),
            blake3: Sum(*self.blake3.finalize().as_bytes()),
        }
    }
}

/// A file that is being written. Dropping it removes what was written.
#[derive(Debug)]
pub(crate) struct FileWriter {
    place: Place,
    name: FileName,
    sink: Sink,
    piece: Vec<u8>,
    digests: Digesting,
}

#[derive(Debug)]
enum Sink {
    Directory(Arc<Unfinished>),
    Objects(Upload),
    Done,
}

#[derive(Debug)]
struct Upload {
    objects: Arc<Objects>,
    /// Begun with the second piece: a short file is one request.
    multipart: Option<Box<dyn MultipartUpload>>,
    tasks: JoinSet<object_store::Result<()>>,
    pieces: u32,
}

/// The digests, here or with the piece that is being digested and written.
#[derive(Debug)]
enum Digesting {
    Idle(Box<Digests>, Vec<u8>),
    Running(JoinHandle<Digested>),
    Lost,
}

#[derive(Debug)]
struct Digested {
    digests: Box<Digests>,
    /// The piece's buffer, to be used again.
    buffer: Vec<u8>,
    written: std::io::Result<()>,
}

impl FileWriter {
    pub(super) async fn begin(place: Place, name: FileName) -> Result<Self, Error> {
        let sink = match &place.kind {
            Kind::Directory(directory) => {
                let directory = Arc::clone(directory);
                let begun = blocking(move || directory.begin(name)).await;
                Sink::Directory(Arc::new(begun.map_err(|e| place.io("create", name, e))?))
            }
            Kind::Objects(objects) => Sink::Objects(Upload {
                objects: Arc::clone(objects),
                multipart: None,
                tasks: JoinSet::new(),
                pieces: 0,
            }),
        };
        Ok(Self {
            place,
            name,
            sink,
            piece: Vec::new(),
            digests: Digesting::Idle(Box::default(), Vec::new()),
        })
    }

    /// Appends bytes. Not cancel-safe: a writer whose `write` was dropped midway is only good for dropping.
    pub(crate) async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let limit = self.place.pieces().bytes;
        while !bytes.is_empty() {
            let taken = bytes.len().min(limit - self.piece.len());
            self.piece.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.piece.len() == limit {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Hands the piece over.
    async fn flush(&mut self) -> Result<(), Error> {
        let (mut digests, buffer) = self.idle().await?;
        let piece = std::mem::replace(&mut self.piece, buffer);
        self.digests = match &mut self.sink {
            Sink::Directory(file) => {
                let file = Arc::clone(file);
                Digesting::Running(tokio::task::spawn_blocking(move || {
                    let mut piece = piece;
                    digests.update(&piece);
                    let written = (&file.file).write_all(&piece);
                    piece.clear();
                    Digested {
                        digests,
                        buffer: piece,
                        written,
                    }
                }))
            }
            Sink::Objects(upload) => {
                let piece = Bytes::from(piece);
                let put = upload.put(self.name, piece.clone()).await;
                put.map_err(|e| self.place.store("write", self.name, e))?;
                Digesting::Running(tokio::task::spawn_blocking(move || {
                    digests.update(&piece);
                    Digested {
                        digests,
                        buffer: Vec::new(),
                        written: Ok(()),
                    }
                }))
            }
            Sink::Done => Digesting::Lost,
        };
        Ok(())
    }

    /// Waits for the last piece that was handed over.
    async fn idle(&mut self) -> Result<(Box<Digests>, Vec<u8>), Error> {
        match std::mem::replace(&mut self.digests, Digesting::Lost) {
            Digesting::Idle(digests, buffer) => Ok((digests, buffer)),
            Digesting::Running(job) => {
                let done = job.await.map_err(std::io::Error::other);
                let done = done.map_err(|e| self.place.io("write", self.name, e))?;
                let written = done.written;
                written.map_err(|e| self.place.io("write", self.name, e))?;
                Ok((done.digests, done.buffer))
            }
            Digesting::Lost => {
                let lost = std::io::Error::other("an earlier write failed or was interrupted");
                Err(self.place.io("write", self.name, lost))
            }
        }
    }

    /// Makes the file durable and visible under its name.
    pub(crate) async fn finish(mut self) -> Result<FileDigests, Error> {
        let is_single = matches!(&self.sink, Sink::Objects(upload) if upload.multipart.is_none());
        if is_single {
            let (mut digests, _) = self.idle().await?;
            let bytes = Bytes::from(std::mem::take(&mut self.piece));
            self.sink = Sink::Done;
            let write = self
                .place
                .write(self.name, bytes.clone(), Existing::Replace);
            let (written, digests) = tokio::join!(
                write,
                blocking(move || {
                    digests.update(&bytes);
                    digests.finish()
                })
            );
            return written.map(|()| digests);
        }
        if !self.piece.is_empty() {
            self.flush().await?;
        }
        let (digests, _) = self.idle().await?;
        match &mut self.sink {
            Sink::Directory(file) => {
                let file = Arc::clone(file);
                let finished = blocking(move || file.finish()).await;
                finished.map_err(|e| self.place.io("write", self.name, e))?;
            }
            Sink::Objects(upload) => {
                let complete = upload.complete(self.name, digests.bytes).await;
                complete.map_err(|e| self.place.store("write", self.name, e))?;
            }
            Sink::Done => {}
        }
        self.sink = Sink::Done;
        Ok(digests.finish())
    }
}

impl Upload {
    async fn put(&mut self, name: FileName, piece: Bytes) -> object_store::Result<()> {
        let multipart = match &mut self.multipart {
            Some(multipart) => multipart,
            None => self.multipart.insert(self.objects.begin(name).await?),
        };
        self.pieces += 1;
        if self.pieces > PIECES_MAX {
            return Err(object_store::Error::NotSupported {
                source: format!(
                    "a file of more than {PIECES_MAX} pieces; split the table into more parts"
                )
                .into(),
            });
        }
        let put = multipart.put_part(piece.into());
        while self.tasks.len() >= UPLOADS {
            self.one().await?;
        }
        self.tasks.spawn(put);
        Ok(())
    }

    /// Waits for one of the uploads.
    async fn one(&mut self) -> object_store::Result<()> {
        match self.tasks.join_next().await {
            Some(joined) => joined?,
            None => Ok(()),
        }
    }

    async fn complete(&mut self, name: FileName, length: u64) -> object_store::Result<()> {
        while !self.tasks.is_empty() {
            self.one().await?;
        }
        match &mut self.multipart {
            Some(multipart) => self.objects.complete(name, &mut **multipart, length).await,
            None => Ok(()),
        }
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        match &mut self.sink {
            Sink::Directory(file) => file.remove(),
            Sink::Objects(upload) => {
                upload.tasks.abort_all();
                if let Some(multipart) = upload.multipart.take() {
                    upload.objects.abort(multipart);
                }
            }
            Sink::Done => {}
        }
    }
}
