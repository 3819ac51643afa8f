//! Reads one stored file from its start with constant memory: a piece in use and one ahead.

use bytes::Bytes;
use tokio::task::JoinSet;

use super::Place;
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
