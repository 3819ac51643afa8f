//! Reads the content of one file from its start; decrypts it if its name says so, and digests what is stored.
//!
//! Decrypting and digesting run on the blocking pool, a piece ahead of the caller.

use bytes::{Bytes, BytesMut};
use tokio::task::JoinSet;

use super::decrypt::{Decrypting, Undecryptable};
use crate::blocking::blocking;
use crate::error::{Error, Problem};
use crate::keys::Keys;
use crate::name::{Cipher, FileName};
use crate::place::{Digests, FileDigests, FileReader, Place};

/// Whether stored bytes are digested while they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Digesting {
    No,
    Yes,
}

/// Pieces up to this length are worked on at once: handing them over would cost as much.
const SMALL: usize = 16 * 1024;

/// A file whose content is being read. Dropping it stops the read ahead.
#[derive(Debug)]
pub(crate) struct ContentReader {
    place: Place,
    name: FileName,
    source: Source,
    piece: Bytes,
}

#[derive(Debug)]
enum Source {
    /// As it is stored.
    Plain(FileReader),
    Worked(Pipeline),
}

/// Pieces that are worked on, the next one ahead. Two stored pieces and two of content are held at most.
#[derive(Debug)]
struct Pipeline {
    /// While no work is under way: before the first piece, and after the last.
    idle: Option<Work>,
    ahead: JoinSet<Result<(Work, Option<Bytes>), Error>>,
}

/// A file so far.
#[derive(Debug)]
struct Work {
    place: Place,
    name: FileName,
    file: FileReader,
    digests: Option<Box<Digests>>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It is not encrypted.
    Plain,
    /// Before the first piece.
    Encrypted(Keys),
    Decrypting(Box<Decrypting>),
    /// There is no more content.
    Over,
}

impl ContentReader {
    /// Bytes of memory that a reader holds at most.
    pub(crate) const MEMORY: u64 = 2 * FileReader::PIECE;

    /// For a file of which `length` bytes are stored.
    pub(crate) fn new(
        place: &Place,
        name: FileName,
        length: u64,
        (keys, digesting): (&Keys, Digesting),
    ) -> Self {
        let stage = match name.cipher() {
            Cipher::None => Stage::Plain,
            Cipher::Age => Stage::Encrypted(keys.clone()),
        };
        let file = |piece| FileReader::new(place.clone(), name, length, piece);
        let source = match (&stage, digesting) {
            (Stage::Plain, Digesting::No) => Source::Plain(file(FileReader::PIECE)),
            _ => Source::Worked(Pipeline {
                idle: Some(Work {
                    place: place.clone(),
                    name,
                    file: file(FileReader::PIECE / 2),
                    digests: (digesting == Digesting::Yes).then(Box::default),
                    stage,
                }),
                ahead: JoinSet::new(),
            }),
        };
        Self {
            place: place.clone(),
            name,
            source,
            piece: Bytes::new(),
        }
    }

    /// The next `length` bytes, at most [`FileReader::PIECE`] of them. Cancel-safe.
    ///
    /// # Errors
    /// A problem of kind damaged where the content ends before.
    pub(crate) async fn take(&mut self, length: usize) -> Result<Bytes, Error> {
        let bytes = self.take_up_to(length).await?;
        if bytes.len() == length {
            return Ok(bytes);
        }
        Err(Problem::damaged(self.name, "it ends too early").at(self.place.location()))
    }

    /// The same; fewer bytes at the end. Cancel-safe.
    pub(crate) async fn take_up_to(&mut self, length: usize) -> Result<Bytes, Error> {
        while self.piece.len() < length {
            let Some(mut next) = self.next().await? else {
                return Ok(std::mem::take(&mut self.piece));
            };
            if self.piece.is_empty() {
                self.piece = next;
                continue;
            }
            // No more than what is asked for is copied, once for each piece.
            let missing = next.len().min(length - self.piece.len());
            let mut joined = BytesMut::with_capacity(self.piece.len() + missing);
            joined.extend_from_slice(&self.piece);
            joined.extend_from_slice(&next.split_to(missing));
            if joined.len() == length {
                self.piece = next;
                return Ok(joined.freeze());
            }
            self.piece = joined.freeze();
        }
        Ok(self.piece.split_to(length))
    }

    /// The rest of the content at once. Not cancel-safe.
    pub(crate) async fn take_all(&mut self, expected: usize) -> Result<Bytes, Error> {
        let mut all = BytesMut::with_capacity(expected);
        all.extend_from_slice(&std::mem::take(&mut self.piece));
        while let Some(next) = self.next().await? {
            all.extend_from_slice(&next);
        }
        Ok(all.freeze())
    }

    /// Whether all of the content was taken: an encrypted file is authenticated to its end then. Cancel-safe.
    pub(crate) async fn is_at_end(&mut self) -> Result<bool, Error> {
        if self.piece.is_empty() {
            self.piece = self.next().await?.unwrap_or_default();
        }
        Ok(self.piece.is_empty())
    }

    /// The digests of all that is stored, once all was taken; `None` where they were not asked for.
    pub(crate) fn digests(&mut self) -> Option<FileDigests> {
        match &mut self.source {
            Source::Plain(_) => None,
            Source::Worked(pipeline) => {
                let digests = pipeline.idle.as_mut()?.digests.take()?;
                Some(digests.finish())
            }
        }
    }

    /// The next piece of content; `None` at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let pipeline = match &mut self.source {
            Source::Plain(file) => return file.next().await,
            Source::Worked(pipeline) => pipeline,
        };
        if let Some(work) = pipeline.idle.take() {
            pipeline.ahead.spawn(work.step());
        }
        let Some(done) = pipeline.ahead.join_next().await else {
            // After an error, a reader is only good for dropping.
            return Ok(None);
        };
        let (work, content) = done.map_err(|e| self.place.broken(self.name, e))??;
        match content {
            Some(_) => drop(pipeline.ahead.spawn(work.step())),
            None => pipeline.idle = Some(work),
        }
        Ok(content)
    }
}

impl Work {
    /// Works on pieces until there is content, or none any more.
    async fn step(mut self) -> Result<(Self, Option<Bytes>), Error> {
        loop {
            let piece = self.file.next().await?;
            let is_last = piece.is_none();
            let content;
            if piece.as_ref().is_none_or(|piece| piece.len() <= SMALL) {
                content = self.open(piece);
            } else {
                (self, content) = blocking(move || {
                    let content = self.open(piece);
                    (self, content)
                })
                .await;
            }
            let content = content.map_err(|why| self.problem(why))?;
            if !content.is_empty() {
                return Ok((self, Some(content)));
            }
            if is_last {
                return Ok((self, None));
            }
        }
    }

    /// The content of a stored piece, or what is left after the last one.
    fn open(&mut self, piece: Option<Bytes>) -> Result<Bytes, Undecryptable> {
        if let (Some(digests), Some(piece)) = (&mut self.digests, &piece) {
            digests.update(piece);
        }
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let Some(piece) = piece else {
            return match stage {
                Stage::Plain | Stage::Over => Ok(Bytes::new()),
                Stage::Encrypted(_) => Err(Undecryptable::Damaged("it is empty")),
                Stage::Decrypting(mut decrypting) => decrypting.finish(),
            };
        };
        match stage {
            Stage::Plain => {
                self.stage = Stage::Plain;
                Ok(piece)
            }
            Stage::Encrypted(keys) => {
                let (decrypting, content) = Decrypting::begin(piece, &keys)?;
                self.stage = Stage::Decrypting(Box::new(decrypting));
                Ok(content)
            }
            Stage::Decrypting(mut decrypting) => {
                let content = decrypting.push(piece)?;
                self.stage = Stage::Decrypting(decrypting);
                Ok(content)
            }
            Stage::Over => Ok(Bytes::new()),
        }
    }

    fn problem(&self, why: Undecryptable) -> Error {
        let why = match why {
            // That a head was changed looks the same.
            Undecryptable::OtherKey => "its head was changed, or it is encrypted to another key",
            Undecryptable::Damaged(why) => why,
        };
        Problem::damaged(self.name, why).at(self.place.location())
    }
}
