//! Reads one stored file from its start with constant memory: a piece in use and one ahead.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{Digests, FileDigests, Place};
use crate::blocking::offload;
use crate::error::{Error, Problem, ProblemKind};
use crate::name::FileName;

/// A stored file that is being read. Dropping it stops the read ahead.
#[derive(Debug)]
pub(crate) struct FileReader {
    place: Place,
    name: FileName,
    length: u64,
    piece: u64,
    /// The end of what was asked for.
    asked: u64,
    ahead: JoinSet<Result<Bytes, Error>>,
}

impl FileReader {
    /// Bytes of one read: a request to a store costs some ten milliseconds.
    pub(crate) const PIECE: u64 = 4 * 1024 * 1024;

    /// For the first `length` bytes, so many at once.
    pub(crate) fn new(place: Place, name: FileName, length: u64, piece: u64) -> Self {
        Self {
            place,
            name,
            length,
            piece,
            asked: 0,
            ahead: JoinSet::new(),
        }
    }

    /// The next piece, of any length but empty; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`ProblemKind::Truncated`] where the file ends before.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.ask();
        let Some(read) = self.ahead.join_next().await else {
            return Ok(None);
        };
        let bytes = read.map_err(|e| self.place.broken(self.name, e))??;
        self.ask();
        Ok(Some(bytes))
    }

    /// Asks for the next piece if none is on its way.
    fn ask(&mut self) {
        if !self.ahead.is_empty() || self.asked >= self.length {
            return;
        }
        let range = self.asked..self.length.min(self.asked + self.piece);
        self.asked = range.end;
        let (place, name, expected) = (self.place.clone(), self.name, self.length);
        self.ahead.spawn(async move {
            let bytes = place.read_range(name, range.clone()).await?;
            if bytes.len() as u64 != range.end - range.start {
                let length = range.start + bytes.len() as u64;
                let kind = ProblemKind::Truncated { length, expected };
                return Err(Problem::new(name, kind).at(place.location()));
            }
            Ok(bytes)
        });
    }
}

impl Place {
    /// The digests of so many bytes of a file as it is stored.
    ///
    /// # Errors
    /// [`ProblemKind::Truncated`] where it is shorter, or the place's own error.
    pub(crate) async fn digests(&self, name: FileName, length: u64) -> Result<FileDigests, Error> {
        let mut file = FileReader::new(self.clone(), name, length, FileReader::PIECE);
        let mut digests = Digests::default();
        while let Some(bytes) = file.next().await? {
            offload(&mut digests, move |digests: &mut Digests| {
                digests.update(&bytes);
            })
            .await;
        }
        Ok(digests.finish())
    }
}
